"""The contract kit: subclass one of these in your tests, and pytest checks your method.

```python
from llmft.testing import AdapterContract

class TestBottleneck(AdapterContract):
    method_class = Bottleneck
    configs = [{"bottleneck_size": 4}]
```

Everything is offline, seeded and small: tiny models that are built in memory, on the CPU. Needs
pytest. The same kit checks the methods that llmft brings along.
"""

from llmft.testing.adapter import AdapterContract
from llmft.testing.alignment import AlignmentContract
from llmft.testing.dataset import DatasetContract
from llmft.testing.models import tiny_gpt2, tiny_llama, tiny_model_folder, tiny_tokenizer
from llmft.testing.reward import RewardContract
from llmft.testing.task import TaskContract
from llmft.testing.tracker import TrackerContract

__all__ = [
    "AdapterContract", "AlignmentContract", "DatasetContract", "RewardContract", "TaskContract",
    "TrackerContract", "tiny_gpt2", "tiny_llama", "tiny_model_folder", "tiny_tokenizer",
]  # fmt: skip
