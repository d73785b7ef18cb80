"""Metrics, intervals, paired tests, the promotion gate and the calibration of confidences, without I/O.

Works on right/wrong arrays and scores. Knows nothing of models, prompts, tasks or files.
"""

from semievol_api.evaluation.confidence import PrecisionCoverage as PrecisionCoverage
from semievol_api.evaluation.confidence import Reliability as Reliability
from semievol_api.evaluation.confidence import ScoreHistogram as ScoreHistogram
from semievol_api.evaluation.confidence import auroc as auroc
from semievol_api.evaluation.confidence import auroc_difference as auroc_difference
from semievol_api.evaluation.confidence import brier as brier
from semievol_api.evaluation.confidence import expected_calibration_error as expected_calibration_error
from semievol_api.evaluation.confidence import precision_coverage as precision_coverage
from semievol_api.evaluation.confidence import reliability as reliability
from semievol_api.evaluation.confidence import score_histogram as score_histogram
from semievol_api.evaluation.statistics import BootstrapSettings as BootstrapSettings
from semievol_api.evaluation.statistics import Interval as Interval
from semievol_api.evaluation.statistics import McNemar as McNemar
from semievol_api.evaluation.statistics import Promotion as Promotion
from semievol_api.evaluation.statistics import accuracy as accuracy
from semievol_api.evaluation.statistics import accuracy_by_category as accuracy_by_category
from semievol_api.evaluation.statistics import confusion as confusion
from semievol_api.evaluation.statistics import cost_per_point as cost_per_point
from semievol_api.evaluation.statistics import cost_per_point_text as cost_per_point_text
from semievol_api.evaluation.statistics import holm as holm
from semievol_api.evaluation.statistics import mcnemar as mcnemar
from semievol_api.evaluation.statistics import paired_bootstrap as paired_bootstrap
from semievol_api.evaluation.statistics import points as points
from semievol_api.evaluation.statistics import promotion_gate as promotion_gate
from semievol_api.evaluation.statistics import smallest_detectable_effect as smallest_detectable_effect
from semievol_api.evaluation.statistics import wilson as wilson
