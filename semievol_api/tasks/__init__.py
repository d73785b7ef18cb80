"""What a question looks like to a model, and what its answer means.

    task = load_task("mmlu")                # or the path of a TOML file: no code is needed for a new task
    prompt = task.prompt(example, shots)
    answer = task.parse(completion.text, example)      # canonical, or None: the model abstained

Knows nothing of files of examples, models, providers or the method.
"""

from semievol_api.tasks.definition import Columns as Columns
from semievol_api.tasks.definition import Hub as Hub
from semievol_api.tasks.definition import TaskDefinition as TaskDefinition
from semievol_api.tasks.task import Task as Task
from semievol_api.tasks.task import load_task as load_task
from semievol_api.tasks.task import task_names as task_names

__all__ = ["Columns", "Hub", "Task", "TaskDefinition", "load_task", "task_names"]
