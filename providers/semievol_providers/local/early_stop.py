"""When a training has learnt all that its validation examples can tell: the best epoch so far, and whether to go on.

Knows nothing of models or files.
"""

from __future__ import annotations

import math
from collections.abc import Mapping


class EarlyStop:
    """Hears every epoch's validation loss; `patience` epochs without a better one end the training. 0: never."""

    def __init__(self, patience: int) -> None:
        self._patience = patience
        self._last_epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf

    def is_better(self, epoch: int, loss: float) -> bool:
        """Take in an epoch; True where its model is the one to keep."""
        self._last_epoch = epoch
        if self._patience == 0 or not loss < self.best_loss:
            return False
        self.best_epoch, self.best_loss = epoch, loss
        return True

    @property
    def is_over(self) -> bool:
        """Whether patience has run out."""
        return 0 < self._patience <= self._last_epoch - self.best_epoch

    @property
    def keeps_earlier(self) -> bool:
        """Whether the model to keep is not the last one."""
        return 0 < self.best_epoch < self._last_epoch

    def state(self) -> dict[str, str]:
        """To be saved with the training."""
        return {"best_epoch": str(self.best_epoch), "best_loss": repr(self.best_loss), "heard": str(self._last_epoch)}

    def restore(self, state: Mapping[str, str]) -> None:
        """Go on from a saved state; one without these words is a training's that heard nothing."""
        self.best_epoch = int(state.get("best_epoch", "0"))
        self.best_loss = float(state.get("best_loss", "inf"))
        self._last_epoch = int(state.get("heard", "0"))
