"""Confidence and selection rules: from what annotators said to the pseudo-labels worth learning from.

    probs = np.stack([estimator.estimate(readings) for readings in crew], axis=1)   # (items, annotators, options)
    pooled = pool(probs, n_options)
    selected = select(pooled.score, ids, Calibration(scores=..., wrong=...), RuleSettings())

Pure numpy on arrays with documented shapes. Knows nothing of models, prompts, providers or files.
"""

from semievol_api.selection.alerts import Alert as Alert
from semievol_api.selection.ambiguity import Ambiguity as Ambiguity
from semievol_api.selection.ambiguity import alerts_of_ambiguity as alerts_of_ambiguity
from semievol_api.selection.ambiguity import ambiguity as ambiguity
from semievol_api.selection.answer_reading import OptionReading as OptionReading
from semievol_api.selection.answer_reading import read_options as read_options
from semievol_api.selection.answer_reading import read_reply as read_reply
from semievol_api.selection.binomial import Share as Share
from semievol_api.selection.binomial import clopper_pearson as clopper_pearson
from semievol_api.selection.choice import Abstentions as Abstentions
from semievol_api.selection.choice import RuleSettings as RuleSettings
from semievol_api.selection.choice import budget_per_round as budget_per_round
from semievol_api.selection.choice import check_missing_logprobs as check_missing_logprobs
from semievol_api.selection.choice import count_abstentions as count_abstentions
from semievol_api.selection.choice import select as select
from semievol_api.selection.choice import too_few as too_few
from semievol_api.selection.classes import ClassCoverage as ClassCoverage
from semievol_api.selection.classes import alerts_of_labels as alerts_of_labels
from semievol_api.selection.classes import alerts_of_selection as alerts_of_selection
from semievol_api.selection.classes import class_coverage as class_coverage
from semievol_api.selection.dawid_skene import dawid_skene as dawid_skene
from semievol_api.selection.drift import DriftSettings as DriftSettings
from semievol_api.selection.drift import DriftTest as DriftTest
from semievol_api.selection.drift import alerts_of_drift as alerts_of_drift
from semievol_api.selection.drift import drift_test as drift_test
from semievol_api.selection.estimators import ESTIMATORS as ESTIMATORS
from semievol_api.selection.estimators import Estimator as Estimator
from semievol_api.selection.estimators import Readings as Readings
from semievol_api.selection.estimators import choose_estimator as choose_estimator
from semievol_api.selection.estimators import from_confidence as from_confidence
from semievol_api.selection.estimators import mean_nll as mean_nll
from semievol_api.selection.estimators import readings_of as readings_of
from semievol_api.selection.estimators import votes as votes
from semievol_api.selection.expectations import Feasibility as Feasibility
from semievol_api.selection.expectations import RealisedRange as RealisedRange
from semievol_api.selection.expectations import calibration_size as calibration_size
from semievol_api.selection.expectations import error_above_cut as error_above_cut
from semievol_api.selection.expectations import feasibility as feasibility
from semievol_api.selection.expectations import realised_range as realised_range
from semievol_api.selection.fdr import fdr as fdr
from semievol_api.selection.high_probability import high_probability as high_probability
from semievol_api.selection.label_shares import at_label_shares as at_label_shares
from semievol_api.selection.label_shares import label_factors as label_factors
from semievol_api.selection.neighbours import neighbour_vote as neighbour_vote
from semievol_api.selection.official import official_2025 as official_2025
from semievol_api.selection.official import unanimous as unanimous
from semievol_api.selection.option_probability import OptionProbs as OptionProbs
from semievol_api.selection.option_probability import option_prob as option_prob
from semievol_api.selection.option_probability import undo_permutation as undo_permutation
from semievol_api.selection.percentile import percentile as percentile
from semievol_api.selection.percentile import percentile_of_score as percentile_of_score
from semievol_api.selection.pool import Pooled as Pooled
from semievol_api.selection.pool import pool as pool
from semievol_api.selection.pool import worth_justifying as worth_justifying
from semievol_api.selection.ranking import HumanQueue as HumanQueue
from semievol_api.selection.ranking import at_random as at_random
from semievol_api.selection.ranking import human_budget as human_budget
from semievol_api.selection.ranking import top_n as top_n
from semievol_api.selection.ranking import with_class_quota as with_class_quota
from semievol_api.selection.values import Calibration as Calibration
from semievol_api.selection.values import Selected as Selected
from semievol_api.selection.verbal_scale import WORD_SCALE as WORD_SCALE
from semievol_api.selection.verbal_scale import verbal_probability as verbal_probability
