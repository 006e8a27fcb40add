"""The contract kit: subclass one of these in your tests, and pytest checks your method.

```python
from llmft.testing import AdapterContract

class TestBottleneck(AdapterContract):
    method_class = Bottleneck
    configs = [{"bottleneck_size": 4}]
```

Everything is offline, seeded and small: tiny models that are built in memory, on the CPU. Needs
pytest. The same kit checks the methods that ship with llmft.
"""

from llmft.modeling.tiny_models import tiny_gpt2, tiny_llama, tiny_model_folder, tiny_tokenizer
from llmft.testing.adapter_contract import AdapterContract
from llmft.testing.alignment_contract import AlignmentContract
from llmft.testing.callback_contract import CallbackContract
from llmft.testing.dataset_contract import DatasetContract
from llmft.testing.metric_contract import MetricContract
from llmft.testing.optimizer_contract import OptimizerContract
from llmft.testing.reward_contract import RewardContract
from llmft.testing.schedule_contract import ScheduleContract
from llmft.testing.task_contract import TaskContract
from llmft.testing.tracker_contract import TrackerContract

__all__ = [
    "AdapterContract", "AlignmentContract", "CallbackContract", "DatasetContract",
    "MetricContract", "OptimizerContract", "RewardContract",
    "ScheduleContract", "TaskContract", "TrackerContract",
    "tiny_gpt2", "tiny_llama", "tiny_model_folder", "tiny_tokenizer",
]  # fmt: skip
