"""Confidence and selection rules: from what annotators said to the pseudo-labels worth learning from.

Pure numpy on arrays with documented shapes. Knows nothing of models, prompts, providers or files.
"""

from semievol_api.selection.percentile import percentile as percentile
from semievol_api.selection.percentile import percentile_of_score as percentile_of_score
from semievol_api.selection.values import BoolArray as BoolArray
from semievol_api.selection.values import Calibration as Calibration
from semievol_api.selection.values import FloatArray as FloatArray
from semievol_api.selection.values import Selected as Selected
