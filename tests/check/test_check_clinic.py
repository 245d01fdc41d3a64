"""The checks of "Clinic": five patients, mended in several styles, and not."""

import answers_clinic as answers
from verdicts import *  # noqa: F403

from course_lib import check

ADA, BEN, CLEO = check.mended_ada, check.mended_ben, check.mended_cleo
DORA, EMIL = check.mended_dora, check.mended_emil

RIGHT = [
    (ADA, answers.ada),
    (ADA, answers.ada_in_one_message),
    (BEN, answers.ben),
    (BEN, answers.ben_looks_at_the_sum),
    (CLEO, answers.cleo),
    (CLEO, answers.cleo_with_ddp),
    (DORA, answers.dora),
    (DORA, answers.dora_with_ddp),
    (EMIL, answers.emil),
    (EMIL, answers.emil_in_one_vector),
]
UNTOUCHED = [(its, answers.stub) for its in (ADA, BEN, CLEO, DORA, EMIL)]
ONCE, NEEDED, BYTES = "through the model of its own rank", "times as much as is needed", "no rank sends more"
WRONG = [
    (ADA, answers.ada_as_it_was, ["finished without calling all_reduce"], ""),
    (ADA, answers.ada_drops, ["nothing that a rank has may be left out"], ONCE),
    (ADA, answers.ada_with_zeros, ["divide by the samples that there are"], ONCE),
    (ADA, answers.ada_shares_samples, ["samples too many went through a model"], "weights of one process"),
    (BEN, answers.ben_as_it_was, ["finished without calling all_reduce"], ""),
    (BEN, answers.ben_without_the_rank, ["without the bad rank"], ONCE),
    (BEN, answers.ben_with_zeros, ["a gradient of zeros from the bad rank"], ONCE),
    (BEN, answers.ben_moves_on, ["a gradient of zeros moves weights"], ONCE),
    (CLEO, answers.cleo_as_it_was, ["what must be clipped is the mean"], BYTES),
    (CLEO, answers.cleo_never_clips, ["never clipped"], BYTES),
    (CLEO, answers.cleo_gathers, [NEEDED], "weights of one process"),
    (DORA, answers.dora_as_it_was, ["the weights are not those"], BYTES),
    (DORA, answers.dora_averages_weights, ["the weights are not those"], BYTES),
    (DORA, answers.dora_broadcasts_always, [NEEDED], "weights of one process"),
    (EMIL, answers.emil_as_it_was, [NEEDED], "weights of one process"),
    (EMIL, answers.emil_in_float32, ["rounding of float32"], ONCE),
    (EMIL, answers.emil_leaves_one_out, ["the weights are not those"], ONCE),
]
