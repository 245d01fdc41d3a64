"""Each check of chapter 07 accepts right answers, stays calm at the stub, and refuses wrong and wasteful answers with a reason that helps."""
import answers_07 as answers
import pytest

from course_lib.check import chapter_07

GRADIENTS, LAYERS, FILE = chapter_07.sharded_gradients, chapter_07.sharded_layers, chapter_07.resharded_checkpoint
RIGHT = [
    (GRADIENTS, [answers.gradients]),
    (GRADIENTS, [answers.gradients_own_memory]),
    (LAYERS, [answers.layers_sharded]),
    (LAYERS, [answers.layers_ahead]),
    (LAYERS, [answers.layers_gathered_by_gloo]),
    (LAYERS, [answers.layers_with_registered_shards]),
    (FILE, [answers.save, answers.load]),
    (FILE, [answers.save_app, answers.load_app]),
]
UNTOUCHED = [(GRADIENTS, [answers.stub]), (LAYERS, [answers.stub]), (FILE, [answers.stub, answers.load]), (FILE, [answers.save, answers.stub])]
SAME_GRADIENTS, SAME_WEIGHTS, FEW = "the gradients of one process", "the weights are those of one process", "at most two layers have their full parameters"
WRONG = [       # a check, answers, words that name the problem, and words of a demand that is met all the same
    (GRADIENTS, [answers.gradients_kept], ["the parameters still have a `.grad`: set it to None"], SAME_GRADIENTS),
    (GRADIENTS, [answers.gradients_late], ["Were all gradients there in full before the first was freed?"], SAME_GRADIENTS),
    (GRADIENTS, [answers.gradients_on_one_root], ["The others send less, and wait for rank 0: is it a root that sums for all?"], SAME_GRADIENTS),
    (GRADIENTS, [answers.gradients_by_gloo], ["sends 2.0", "gloo's reduce_scatter is an all_reduce"], SAME_GRADIENTS),
    (GRADIENTS, [answers.gradients_by_all_reduce], ["An all_reduce sends the whole sum to every rank"], SAME_GRADIENTS),
    (GRADIENTS, [answers.gradients_summed], ["It is the sum over the ranks, not their average: divide by the world size"], "no rank sends more"),
    (GRADIENTS, [answers.gradients_overwritten], ["after two micro-batches", "It is the gradient of the last micro-batch alone"], "no rank sends more"),
    (GRADIENTS, [answers.gradients_of_this_rank], ["after one micro-batch, a shard's gradient is not that of one process"], "no rank sends more"),
    (GRADIENTS, [answers.gradients_of_parameters], ["must return one flat shard per layer"], ""),
    (GRADIENTS, [answers.gradients_without_padding], ["must return one flat shard per layer"], ""),
    (GRADIENTS, [answers.nothing], ["must return one flat shard per layer"], ""),
    (LAYERS, [answers.layers_all_at_once], ["10 of 10 layers have their full parameters at once", "Gather a layer right before it works"], SAME_WEIGHTS),
    (LAYERS, [answers.layers_kept_until_backward], ["10 of 10 layers have their full parameters at once"], SAME_WEIGHTS),
    (LAYERS, [answers.layers_never_freed], ["Are full parameters never freed"], SAME_WEIGHTS),
    (LAYERS, [answers.layers_with_empty_data], ["the layers look free, but during forward the allocator has given out the memory of"], FEW),
    (LAYERS, [answers.layers_with_late_gradients], ["during backward the allocator has given out the memory of"], FEW),
    (LAYERS, [answers.layers_without_second_gather], ["RuntimeError"], ""),
    (LAYERS, [answers.layers_by_gloo], ["gloo's reduce_scatter is an all_reduce"], SAME_WEIGHTS),
    (LAYERS, [answers.layers_on_one_root], ["a root that sums for all?"], SAME_WEIGHTS),
    (LAYERS, [answers.layers_summed], ["the weights are not those of one process", "Is the gradient the average over the ranks?"], FEW),
    (LAYERS, [answers.layers_with_views], ["a shard has lost its memory, when its layer was freed: it is a view"], ""),
    (LAYERS, [answers.layers_with_kept_gradients], ["The parameters of the layers still have a `.grad`: set it to None"], FEW),
    (LAYERS, [answers.nothing], ["`shard_layers` must return the shards"], ""),
    (FILE, [answers.nothing, answers.load], ["nothing was written at `path`"], ""),
    (FILE, [answers.save, answers.load_other_names], ["raised RuntimeError: Missing key in checkpoint state_dict"], "every rank writes at most"),
    (FILE, [answers.save_whole_on_rank_0, answers.load_whole], ["times its share of the bytes", "a rank takes new memory of"], "as if it had never stopped"),
    (FILE, [answers.save_files_of_ranks, answers.load_files_of_ranks], ["RuntimeError"], "every rank writes at most"),
    (FILE, [answers.save_model_only, answers.load_model_only], ["The weights came back, so look at the optimizer"], "every rank writes at most"),
    (FILE, [answers.save, answers.load_and_forget], ["The model is as it was before"], "every rank writes at most"),
    (FILE, [answers.save_on_rank_0, answers.load], ["The ranks called different collectives"], ""),
]


def name(value) -> str:
    parts = value if isinstance(value, list) else [value]
    return "-".join(getattr(part, "__name__", "") for part in parts).strip("-")


@pytest.mark.parametrize("check", [GRADIENTS, LAYERS, FILE], ids=name)
def test_right_answers_are_accepted_and_in_the_same_words(check):
    """A verdict that changes from run to run could not be compared with the one stored in the notebook."""
    verdicts = [check(*answer) for its, answer in RIGHT if its is check]
    for verdict in verdicts:
        assert verdict, repr(verdict)
        assert not verdict.untouched and all(line.startswith("yes ") for line in verdict.lines)
        assert repr(verdict) == repr(verdicts[0])


@pytest.mark.parametrize("check, answer", UNTOUCHED, ids=name)
def test_the_stub_gets_one_calm_line(check, answer):
    verdict = check(*answer)
    assert verdict.untouched and not verdict and len(verdict.lines) == 1
    assert "not attempted yet" in repr(verdict)


@pytest.mark.parametrize("check, answer, reasons, met", WRONG, ids=name)
def test_wrong_answers_are_refused_with_the_reason(check, answer, reasons, met):
    verdict = check(*answer)
    assert not verdict and not verdict.untouched
    for reason in reasons:
        assert any(line.startswith("no ") and reason in line for line in verdict.lines), repr(verdict)
    assert not met or any(line.startswith("yes ") and met in line for line in verdict.lines), repr(verdict)
