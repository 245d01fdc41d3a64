"""Each check of "Choosing a strategy" accepts right answers, stays calm at the stub, and refuses wrong and
wasteful answers with a reason that helps.
"""

from types import SimpleNamespace

import answers_choosing_a_strategy as answers
import pytest
from verdicts import *  # noqa: F403

from course_lib.check import choosing_a_strategy as chapter
from course_lib.check import judge

CHECKS = {
    chapter.forward_counts: [answers.counts, answers.counts_by_torch],
    chapter.link_of_measurements: [answers.link, answers.link_by_medians],
    chapter.bytes_by_axis: [answers.axis_bytes, answers.axis_bytes_by_theory],
}
counts, link, axis = CHECKS
RIGHT = [(check, answer) for check, right in CHECKS.items() for answer in right]
UNTOUCHED = [(check, answers.stub) for check in CHECKS]
WRONG = [
    (counts, answers.counts_layers_once, "Does a layer that works twice count once?", ""),
    (counts, answers.counts_tied_twice, "Does a weight that two layers share count twice", ""),
    (counts, answers.counts_weights_as_kept, "Do parameters count", ""),
    (counts, answers.counts_of_all_samples, "Is it of one sample?", "params: each parameter once"),
    (counts, answers.counts_leaves_hooks, "hooks are left on the network", "params: each parameter once"),
    (counts, answers.counts_with_backward, "nothing here needs a backward", "params: each parameter once"),
    (counts, answers.counts_in_two_forwards, "the network has worked 2 times", "params: each parameter once"),
    (link, answers.link_by_least_squares, "or least squares, believes it", "of exact measurements"),
    (link, answers.link_by_means, "a mean, or least squares, believes it", "of exact measurements"),
    (link, answers.link_of_the_whole_call, "alpha is of one", ""),
    (link, answers.link_per_byte_of_the_tensor, "beta is per byte that a rank sends", ""),
    (link, answers.link_of_all_reduce_alone, "all_gather on 2 ranks", "of exact measurements"),
    (link, answers.link_as_text, "return two numbers", ""),
    (axis, answers.axis_bytes_of_the_whole_batch, "It is of the whole batch", ""),
    (axis, answers.axis_bytes_forward_alone, "It is forward alone", ""),
    (axis, answers.axis_bytes_with_the_input, "the gradient of the network's input", ""),
    (axis, answers.axis_bytes_of_all_parameters, "It is the whole network", ""),
    (axis, answers.axis_bytes_as_payload, "It is the payload", ""),
    (axis, answers.axis_bytes_as_a_sum, 'return {"dp": bytes, "tp": bytes}', ""),
]


@pytest.mark.parametrize("seed", (2, 15), ids=("few_bytes", "fewer_bytes"))
def test_headers_of_small_messages_are_not_counted_against_an_answer(seed, monkeypatch):
    monkeypatch.setattr(judge, "secrets", SimpleNamespace(randbelow=lambda most: seed))
    verdict = axis(answers.axis_bytes)
    assert verdict, repr(verdict)
