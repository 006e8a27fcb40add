"""The settings of `push_to_hub`."""

from __future__ import annotations

from pydantic import Field

from llmft.api.settings import Name, Settings


class PushToHub(Settings):
    """Where a finished stage's adapter is uploaded after the run, with the user's own login."""

    repo_id: str = Field(
        pattern=r"^[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?$",
        description="the hub repository, such as my-name/my-adapter; created if it does not exist",
    )
    private: bool = Field(
        True, description="keep the repository private; an existing public one is refused"
    )
    stage: Name = Field(
        "last",
        description="the stage whose adapter is uploaded, of the last round if it is repeated;"
        " 'last': the last stage that trains",
    )
    timeout_seconds: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="stop the upload after this time; the run itself is finished",
    )
