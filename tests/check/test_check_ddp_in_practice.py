"""The check of each exercise of the chapter accepts right answers, stays calm at the stub, and refuses wrong
and wasteful answers with a reason that helps.
"""

import answers_ddp_in_practice as answers
from verdicts import *  # noqa: F403

from course_lib.check import ddp_in_practice as chapter

EXACT, TOKENS, FILE = chapter.exact_evaluation, chapter.token_average, chapter.checkpoint
RIGHT = [
    (EXACT, [answers.evaluate]),
    (EXACT, [answers.evaluate_by_objects]),
    (TOKENS, [answers.update]),
    (TOKENS, [answers.update_scales_gradients]),
    (FILE, [answers.save, answers.load]),
    (FILE, [answers.save, answers.load_and_broadcast]),
    (FILE, [answers.save_by_a_buffer, answers.load]),
    (FILE, [answers.save_beside_and_rename, answers.load_of_bytes]),
]
UNTOUCHED = [
    (EXACT, [answers.stub]),
    (TOKENS, [answers.stub]),
    (FILE, [answers.stub, answers.load]),
    (FILE, [answers.save, answers.stub]),
]
# a check, answers, words that name the problem, and words of a demand that is met all the same
WRONG = [
    (EXACT, [answers.evaluate_padded], ["some of them twice"], "in eval mode"),
    (EXACT, [answers.evaluate_dropping], ["samples went through no model"], "in eval mode"),
    (EXACT, [answers.evaluate_mean_of_means], ["what comes back is wrong by"], "in even shares"),
    (EXACT, [answers.evaluate_everything], ["some of them twice"], "the part of all samples"),
    (EXACT, [answers.evaluate_on_rank_0], ["Deal them out evenly"], "the part of all samples"),
    (EXACT, [answers.evaluate_while_training], ["Call `model.eval()`"], "in even shares"),
    (EXACT, [answers.evaluate_with_a_graph], ["Use `torch.no_grad()`"], "the part of all samples"),
    (EXACT, [answers.evaluate_and_train_all], ["in another mode than before"], "the part of all samples"),
    (EXACT, [answers.evaluate_at_once], ["more than `batch_size` samples"], "the part of all samples"),
    (EXACT, [answers.evaluate_by_scores], ["Two numbers are enough"], "the part of all samples"),
    (EXACT, [answers.evaluate_own_part], ["what comes back is wrong by"], "in even shares"),
    (EXACT, [answers.evaluate_does_not_wait], ["what comes back is wrong by"], "in even shares"),
    (EXACT, [answers.evaluate_prints], ["it returned None, and should return a number"], ""),
    (
        TOKENS,
        [answers.update_own_tokens],
        ["a rank of few tokens counts as much as one with many"],
        "each micro-batch goes",
    ),
    (TOKENS, [answers.update_divides_twice], ["once too often: DDP does that, too"], "no rank sends more"),
    (TOKENS, [answers.update_plain_mean], ["it should count by its tokens"], "no rank sends more"),
    (TOKENS, [answers.update_mean_of_means], ["it should count by its tokens"], "no rank sends more"),
    (TOKENS, [answers.update_every_time], ["Gradients travel once"], "weights are those of one process"),
    (TOKENS, [answers.update_joined], ["has not sent each of its micro-batches"], "weights are those"),
    (TOKENS, [answers.update_count_does_not_wait], ["the weights are not those"], ""),
    (
        FILE,
        [answers.save_on_every_rank, answers.load],
        ["they called it 2 and 2 times"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_without_barrier, answers.load],
        ["`save` returned on rank 1 before the file was there"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_barrier_first, answers.load],
        ["after torch.save, on every rank"],
        "rank 0 alone saves",
    ),
    (
        FILE,
        [answers.save_and_close_late, answers.load],
        ["before the file was there, and complete"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_others_sleep, answers.load],
        ["before the file was there, and complete"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_others_look_for_the_file, answers.load],
        ["before the file was there, and complete"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_renames_after_the_barrier, answers.load],
        ["before the file was there, and complete"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_writes_after_the_barrier, answers.load],
        ["before the file was there, and complete"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save_and_forget, answers.load],
        ["the model or the optimizer's state is another one than before"],
        "the file is there",
    ),
    (FILE, [answers.save_without_buffers, answers.load], ["all of it, buffers too"], "the file is there"),
    (
        FILE,
        [answers.save_in_bfloat16, answers.load],
        ["training does not go on as before"],
        "the file is there",
    ),
    (
        FILE,
        [answers.save, answers.load_moments_only],
        ["all of it, on every rank"],
        "`load` returns the step",
    ),
    (FILE, [answers.save, answers.load_says_three], ["and returned 3."], "training goes on as if"),
    (
        FILE,
        [answers.save_the_model_itself, answers.load],
        ["no object of a class, such as the model itself"],
        "rank 0 alone saves",
    ),
    (
        FILE,
        [answers.save_other_keys, answers.load],
        ["a dict with the keys weights, step, and it should hold"],
        "rank 0 alone saves",
    ),
    (
        FILE,
        [answers.save_wrapped, answers.load],
        ['the wrapper puts "module." before each name'],
        "rank 0 alone saves",
    ),
    (
        FILE,
        [answers.save, answers.load_with_code],
        ["the code ran. Load with `weights_only=True`"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save, answers.load_without_map_location],
        ["without `map_location`"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save, answers.load_without_return],
        ["on every rank, and returned None"],
        "training goes on as if",
    ),
    (
        FILE,
        [answers.save, answers.load_model_only],
        ["Restore the optimizer's state too"],
        "`load` returns the step",
    ),
    (
        FILE,
        [answers.save, answers.load_on_rank_0],
        ["Restore the optimizer's state too, all of it, on every rank"],
        "`load` returns the step",
    ),
]
