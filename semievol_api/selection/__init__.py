"""Confidence and selection rules: from annotations to the pseudo-labels worth training on.

    probs = np.stack([estimator.estimate(readings) for readings in annotators], axis=1)   # (items, annotators, options)
    pooled = pool(probs, n_options)
    selected = select(pooled.score, ids, Calibration(scores=..., wrong=...), RuleSettings())

Pure numpy on arrays with documented shapes. Knows nothing of models, prompts, providers or files.
"""

from semievol_api.records import Alert as Alert
from semievol_api.selection.alerts import Ambiguity as Ambiguity
from semievol_api.selection.alerts import ClassCoverage as ClassCoverage
from semievol_api.selection.alerts import DriftSettings as DriftSettings
from semievol_api.selection.alerts import DriftTest as DriftTest
from semievol_api.selection.alerts import alerts_of_ambiguity as alerts_of_ambiguity
from semievol_api.selection.alerts import alerts_of_drift as alerts_of_drift
from semievol_api.selection.alerts import alerts_of_labels as alerts_of_labels
from semievol_api.selection.alerts import alerts_of_selection as alerts_of_selection
from semievol_api.selection.alerts import ambiguity as ambiguity
from semievol_api.selection.alerts import class_coverage as class_coverage
from semievol_api.selection.alerts import drift_test as drift_test
from semievol_api.selection.label_probabilities import OptionProbs as OptionProbs
from semievol_api.selection.label_probabilities import at_label_shares as at_label_shares
from semievol_api.selection.label_probabilities import label_factors as label_factors
from semievol_api.selection.label_probabilities import neighbour_vote as neighbour_vote
from semievol_api.selection.label_probabilities import option_prob as option_prob
from semievol_api.selection.label_probabilities import undo_permutation as undo_permutation
from semievol_api.selection.pooling import Pooled as Pooled
from semievol_api.selection.pooling import dawid_skene as dawid_skene
from semievol_api.selection.pooling import pool as pool
from semievol_api.selection.pooling import worth_justifying as worth_justifying
from semievol_api.selection.promises import Feasibility as Feasibility
from semievol_api.selection.promises import RealisedRange as RealisedRange
from semievol_api.selection.promises import Share as Share
from semievol_api.selection.promises import calibration_size as calibration_size
from semievol_api.selection.promises import clopper_pearson as clopper_pearson
from semievol_api.selection.promises import error_above_cut as error_above_cut
from semievol_api.selection.promises import feasibility as feasibility
from semievol_api.selection.promises import realised_range as realised_range
from semievol_api.selection.rule_fdr import fdr as fdr
from semievol_api.selection.rule_high_probability import high_probability as high_probability
from semievol_api.selection.rule_percentile import official_2025 as official_2025
from semievol_api.selection.rule_percentile import percentile as percentile
from semievol_api.selection.rule_percentile import percentile_of_score as percentile_of_score
from semievol_api.selection.rule_percentile import unanimous as unanimous
from semievol_api.selection.rule_ranking import HumanQueue as HumanQueue
from semievol_api.selection.rule_ranking import at_random as at_random
from semievol_api.selection.rule_ranking import human_budget as human_budget
from semievol_api.selection.rule_ranking import top_n as top_n
from semievol_api.selection.rule_ranking import with_class_quota as with_class_quota
from semievol_api.selection.rules import Abstentions as Abstentions
from semievol_api.selection.rules import budget_per_round as budget_per_round
from semievol_api.selection.rules import check_missing_logprobs as check_missing_logprobs
from semievol_api.selection.rules import count_abstentions as count_abstentions
from semievol_api.selection.rules import select as select
from semievol_api.selection.rules import too_few as too_few
from semievol_api.selection.values import Calibration as Calibration
from semievol_api.selection.values import RuleSettings as RuleSettings
from semievol_api.selection.values import Selected as Selected
