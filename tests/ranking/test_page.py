"""The page in a real browser: by keys, by mouse, by finger, left and come back to, cut off."""

from __future__ import annotations

import json
import re
import signal

import pytest

from .browser import Browser, missing
from .person import Person

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture
def person(browser, samples_file, samples, ratings):
    """A rater before the page of a server in this process."""
    found = Person(browser, samples_file, samples, ratings)
    with found.here:
        found.start_here()
        found.open()
        yield found
        browser.open("about:blank")


@pytest.fixture
def user(browser, samples_file, samples, ratings):
    """A rater who has started the program."""
    found = Person(browser, samples_file, samples, ratings)
    found.start()
    found.open()
    yield found
    found.end()
    browser.open("about:blank")


def test_all_by_keyboard(person, browser):
    assert person.order() == "A>B>C>D"
    browser.press("Tab")  # from the title to the first answer
    browser.press("3")
    assert person.order() == "B>C>A>D"
    assert person.announced() == "Answer A, place 3 of 4"
    browser.press("Up")
    assert person.order() == "B>A>C>D"
    browser.press("=")
    assert person.order() == "B=A>C>D"
    assert person.announced() == "Answer A, place 1 of 3, tied with B"
    browser.press("Right", "Down")
    assert person.order() == "B=A>D>C"
    assert browser.text("#saved") == "Not saved yet"
    assert person.saved() == []
    browser.press("Enter")
    person.sees(2)
    assert person.saved() == ["A=B>D>C"]
    assert browser.text("#saved") == "Saved"
    assert browser.text("#count") == "1 of 3 rated, 2 left"
    browser.press("b", "Enter")
    person.sees(3)
    browser.press("Tab", "Down", "Enter")
    person.sees_the_end()
    assert person.saved() == ["A=B>D>C", "all bad", "B>A"]
    assert browser.text("#done-title") == "Everything is rated"
    assert browser.text("#command") == "llmft run x --resume"
    assert "0.50 (Krippendorff's alpha" in browser.text("#agreement")
    assert browser.run("return document.activeElement.id") == "done-title"
    assert browser.log() == []


def test_each_key_does_what_the_page_says(person, browser):
    steps = [
        ("B", "1", "B>A>C>D"), ("D", "2", "B>D>A>C"), ("D", "4", "B>A>C>D"), ("D", "=", "B>A>C=D"),
        ("A", "Down", "B>C=D>A"), ("D", "Up", "B>D>C>A"), ("C", "=", "B>D=C>A"),
        ("D", "=", "B=D=C>A"), ("D", "=", "B>D=C>A"), ("D", "Down", "B>C>D>A"),
        ("B", "Up", "B>C>D>A"), ("B", "=", "B>C>D>A"), ("A", "9", "B>C>D>A"),
    ]  # fmt: skip
    for letter, key, order in steps:
        person.focus(letter)
        browser.press(key)
        assert person.order() == order, (letter, key)


def test_by_buttons(person, browser):
    browser.click(f"{person.card('A')} .down")
    assert person.order() == "B>A>C>D"
    browser.click(f"{person.card('C')} .tie")
    assert person.order() == "B>A=C>D"
    browser.click(f"{person.card('D')} .up")
    assert person.order() == "B>D>A=C"
    # The card has the focus, and not the button: Enter saves what is seen.
    browser.press("Enter")
    person.sees(2)
    assert person.saved() == ["B>D>A=C"]
    browser.click("#bad")
    browser.click("#save")
    person.sees(3)
    assert person.saved()[1] == "all bad"
    browser.click("#back")
    person.sees(2)
    assert browser.run("return document.querySelector('#bad').ariaPressed") == "true"


@pytest.mark.parametrize("touch", [False, True], ids=["mouse", "finger"])
def test_by_dragging(person, browser, touch):
    def drag(letter, target, past=0.75):
        browser.drag(f"{person.card(letter)} .handle", person.card(target), past, touch)

    drag("A", "C")
    assert person.order() == "B>C>A>D"
    assert person.announced() == "Answer A, place 3 of 4"
    drag("D", "B", 0.25)
    assert person.order() == "D>B>C>A"
    person.focus("C")
    browser.press("=")
    assert person.order() == "D>B=C>A"
    drag("A", "C", 0.25)  # between two that are tied: it joins them
    assert person.order() == "D>B=A=C"
    drag("B", "B", 0.6)
    assert person.order() == "D>B=A=C"
    browser.press("Enter")
    person.sees(2)
    assert person.saved() == ["D>A=B=C"]


def test_escape_puts_a_dragged_answer_back(person, browser):
    browser.run(
        """const h = document.querySelector('#answers .handle'), b = h.getBoundingClientRect();
        const at = (type, y) => h.dispatchEvent(new PointerEvent(type,
          {bubbles: true, pointerId: 1, button: 0, clientX: b.x, clientY: y}));
        Element.prototype.setPointerCapture = () => {};
        at('pointerdown', b.y); at('pointermove', b.y + 500);"""
    )
    browser.wait("return document.querySelector('.held')")
    browser.press("Escape")
    assert browser.run("return document.querySelector('.held, .dragging')") is None
    assert person.order() == "A>B>C>D"


def test_a_random_order_is_not_saved_by_a_slip(person, browser):
    browser.press("Enter")
    assert browser.text("#saved") == "Right as it stands? Then save once more"
    assert person.saved() == []
    browser.press("Enter")
    person.sees(2)
    assert person.saved() == ["A>B>C>D"]


def test_back_changes_what_was_saved_and_enter_alone_does_not(person, browser):
    browser.press("Tab", "2", "Enter")
    person.sees(2)
    browser.press("Backspace")
    person.sees(1)
    assert person.order() == "B>A>C>D"
    assert browser.text("#saved") == "Saved"
    browser.press("Enter")
    person.sees(2)
    assert person.saved() == ["B>A>C>D"]
    browser.press("p")
    person.sees(1)
    person.focus("D")
    browser.press("1", "Enter")
    person.sees(2)
    assert person.saved() == ["B>A>C>D", "D>B>A>C"]
    browser.press("s")
    person.sees(3)
    browser.press("s")
    person.sees(2)


@pytest.mark.extended
def test_leaving_and_coming_back(user, browser):
    browser.press("Tab", "2", "Enter")
    user.sees(2)
    browser.press("Tab", "=")  # nothing is above the first
    browser.press("Down")
    here = user.order()
    browser.open("about:blank")
    browser.open(user.address)
    user.sees(2)
    assert user.order() == here  # not saved, and still there
    assert "1 of 3 samples are rated" in user.end()
    user.start()
    browser.open(user.address)
    user.sees(2)
    browser.press("p")
    user.sees(1)
    assert user.order() == "B>A>C>D"
    assert browser.text("#count") == "1 of 3 rated, 2 left"


def test_a_killed_program_loses_nothing_and_the_page_goes_on_with_the_next_one(user, browser):
    browser.press("Tab", "2", "Enter")
    user.sees(2)
    user.end(signal.SIGKILL)
    browser.press("Tab", "3", "Enter")
    browser.wait("return !document.querySelector('#banner').hidden")
    said = browser.text("#trouble")
    assert "cannot be reached" in said
    assert "kept on this page, and is not saved yet" in said
    assert browser.text("#saved") == "Saving …"
    assert user.saved() == ["B>A>C>D"]
    order = user.order()
    browser.press("Up", "b")  # nothing moves while it waits to be saved
    assert user.order() == order
    user.start()
    user.sees(3)
    assert browser.run("return document.querySelector('#banner').hidden")
    assert user.saved() == ["B>A>C>D", order]
    assert browser.text("#saved") == "Saved"


def test_a_page_of_an_earlier_start_is_told_to_open_the_new_address(user, browser):
    port = re.search(r":(\d+)/", user.address)[1]
    user.end()
    user.start("--port", port)
    browser.press("b", "Enter")
    browser.wait("return !document.querySelector('#banner').hidden")
    assert "started anew" in browser.text("#trouble")
    assert browser.text("#saved") == "Not saved yet"
    assert user.saved() == []


@pytest.mark.extended
def test_what_one_rater_has_not_saved_is_not_shown_to_another(user, browser):
    port = re.search(r":(\d+)/", user.address)[1]
    browser.press("Tab", "2")
    assert user.order() == "B>A>C>D"
    browser.open("about:blank")
    user.end()
    user.start("--rater", "ben", "--port", port)  # in the same window
    browser.open(user.address)
    user.sees(1)
    assert user.order() == "A>B>C>D"
    assert browser.text("#saved") == ""


def test_what_a_model_wrote_is_shown_as_text(person, browser):
    browser.press("s")
    person.sees(2)
    texts = browser.texts("#answers .text")
    assert sorted(texts) == ["  cold\n\tice", "<img src=x onerror=\"document.title='x'\">", "snow"]
    assert browser.run("return document.querySelectorAll('#answers img').length") == 0
    assert browser.texts(".role") == ["system", "user"]
    assert any("given 2 times" in name for name in browser.texts(".name"))
    style = "return getComputedStyle(document.querySelector('#answers .text')).whiteSpace"
    assert browser.run(style) == "pre-wrap"


def test_the_page_can_end_the_program(user, browser):
    for number in (2, 3):
        browser.press("b", "Enter")
        user.sees(number)
    browser.press("b", "Enter")
    user.sees_the_end()
    browser.click("#finish")
    browser.wait("return !document.querySelector('#bye').hidden")
    out, _ = user.process.communicate(timeout=20)
    assert user.process.returncode == 0
    assert "3 of 3 samples are rated" in out
    user.process = None


def test_names_roles_and_announcements_are_there_for_a_screen_reader(person, browser):
    tree = browser.devtools("Accessibility.getFullAXTree")["nodes"]

    def names(role):
        return [
            node["name"]["value"]
            for node in tree
            if not node["ignored"] and node["role"]["value"] == role
        ]

    assert names("list")[0] == "Rank the answers, best first"
    assert [name for name in names("group") if name][:2] == [
        "Answer A, place 1 of 4",
        "Answer B, place 2 of 4",
    ]
    buttons = names("button")
    assert {"Back", "All bad", "Skip", "Save and go on"} <= set(buttons)
    assert {"Move answer A up", "Move answer D down", "Tie answer B with the one above"} <= set(
        buttons
    )
    assert all(buttons)
    assert names("progressbar") == ["0 of 3 rated, 3 left"]
    assert names("heading") == ["Prompt 1 of 3", "Rank the answers, best first"]
    assert browser.run("return document.querySelector('#live').ariaLive") == "polite"
    assert browser.run("return document.querySelector('#saved').role") == "status"
    assert browser.run("return document.querySelector('#banner').role") == "alert"
    assert browser.run("return document.activeElement.id") == "title"
    browser.press("Tab")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert browser.run(outline) == "solid"


def test_letter_keys_can_be_turned_off(person, browser):
    browser.run("document.querySelector('#letters').click()")
    browser.press("b")
    assert browser.run("return document.querySelector('#bad').ariaPressed") == "false"
    browser.press("Tab", "b")  # on an answer they still work
    assert browser.run("return document.querySelector('#bad').ariaPressed") == "true"


@pytest.fixture
def phone(browser):
    browser.devtools(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=640,
        deviceScaleFactor=2,
        mobile=True,
    )
    yield
    browser.devtools("Emulation.clearDeviceMetricsOverride")


def test_on_a_phone_everything_fits_and_can_be_hit_by_a_thumb(phone, person, browser):
    for number in (1, 2):
        person.sees(number)
        assert browser.run("return document.documentElement.scrollWidth") <= 360
        small = browser.run(
            "return [...document.querySelectorAll('button, .handle, summary, label')]"
            ".filter((e) => e.checkVisibility()).map((e) => [e.className || e.id || e.tagName,"
            " e.getBoundingClientRect()]).filter(([, b]) => b.width < 44 || b.height < 44)"
        )
        assert small == []
        browser.press("s")
    person.sees(3)
    browser.run("document.querySelector('#answers').scrollIntoView()")
    first = person.order()[0]
    browser.click(f"{person.card(first)} .down")
    assert person.order()[0] != first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_light_and_in_dark(person, browser, scheme):
    browser.devtools(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
    )
    browser.press("Tab", "2", "=")
    ratios = browser.run(CONTRAST)
    browser.devtools("Emulation.setEmulatedMedia", features=[])
    assert len(ratios) > 20
    assert {name: ratio for name, ratio in ratios.items() if ratio < 4.5} == {}


# WCAG's contrast of every element that has text of its own against the first opaque background
# behind it; what is disabled need not stand out.
CONTRAST = """
const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
  .reduce((sum, v, at) => sum + v * [0.2126, 0.7152, 0.0722][at], 0);
const behind = (e) => {
  const color = rgb(getComputedStyle(e).backgroundColor);
  return color.length === 3 || color[3] === 1 || !e.parentElement ? color : behind(e.parentElement);
};
const found = {};
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
  if (!own || !e.checkVisibility() || e.closest(':disabled, [aria-disabled="true"]')) continue;
  const [a, b] = [light(rgb(getComputedStyle(e).color)), light(behind(e))];
  found[e.tagName + ' ' + e.textContent.trim().slice(0, 20) + Object.keys(found).length] =
    (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
}
return found;
"""


def test_nothing_moves_by_itself_for_those_who_asked_so(person, browser):
    browser.devtools(
        "Emulation.setEmulatedMedia",
        features=[{"name": "prefers-reduced-motion", "value": "reduce"}],
    )
    person.focus("A")
    browser.press("Down")
    moving = browser.run("return document.getAnimations().length")
    browser.devtools("Emulation.setEmulatedMedia", features=[])
    browser.press("Down")
    assert moving == 0
    assert browser.run("return document.getAnimations().length") > 0


def test_the_page_speaks_with_nobody_else(person, browser):
    browser.press("b", "Enter")
    person.sees(2)
    asked = json.loads(
        browser.run("return JSON.stringify(performance.getEntries().map((e) => e.name))")
    )
    hosts = {name.split("/")[2] for name in asked if "://" in name}
    assert hosts == {person.address.split("/")[2]}
