"""Nonsense for every public function: an answer, or a typed error in one sentence from this library; never a
hang, never a library's stack.
"""

import importlib
import inspect
import itertools
import random
import warnings

import junk
import matplotlib.pyplot
import pytest
import torch
from chapter_code import modules_of_chapters
from junk import JUNK, judge

matplotlib.use("Agg")

from course_lib import Job, check, mini, run, sweep  # noqa: E402

OTHERWISE = {
    "course_lib",  # its functions start ranks, or stand in modules that chapters import too
    "course_lib.check",  # below
    "course_lib.measure.memory",  # chapters read with these what they have made
    "course_lib.measure.storages",
    "course_lib.plots.pictures.boxes",  # pictures are made of these, and one by a chapter
}
BY_THE_LIBRARY = {
    "Bucket",
    "Unit",
    "ZeroOptimizer",
    "Plan",
    "Routing",
    "Explorer",
}  # it makes them for itself
# ranks call these: the first ones below, the others in tests/ranks
NO_RANKS = "Default process group has not been initialized", "cut_link is for a rank on linked hosts"


def public_functions():
    for name in modules_of_chapters():
        module = importlib.import_module(name)
        for attribute in module.__all__ if name not in OTHERWISE else ():
            value = getattr(module, attribute)
            if inspect.isroutine(value) or inspect.isclass(value) and attribute not in BY_THE_LIBRARY:
                yield f"{name.removeprefix('course_lib.')}.{attribute}", value


def calls(function, count):
    """Argument lists: each parameter alone as junk where the others have defaults, then random mixtures."""
    parameters = [
        p
        for p in inspect.signature(function).parameters.values()
        if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    chance = random.Random(function.__name__)
    for _ in range(count):
        positional, keywords = [], {}
        for parameter in parameters:
            if parameter.default is not inspect.Parameter.empty and chance.random() < 0.5:
                continue
            keywords[parameter.name] = chance.choice(JUNK)
        for parameter in parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY and parameter.name in keywords:
                positional.append(keywords.pop(parameter.name))
        yield positional, keywords


@pytest.mark.parametrize(
    "name, function", list(public_functions()), ids=lambda value: value if isinstance(value, str) else ""
)
def test_functions_that_need_no_ranks(name, function):
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for positional, keywords in calls(function, 60):
            try:
                result = function(*positional, **keywords)
                if inspect.isgenerator(result):
                    list(itertools.islice(result, 1))
            except Exception as error:
                if str(error).startswith(NO_RANKS):
                    continue
                shown = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
                if wrong := judge(error, f"{name}({shown})"):
                    found.setdefault(wrong.split(":", 1)[1][:60], wrong)
    matplotlib.pyplot.close("all")
    assert not found, "\n".join(found.values())


@pytest.mark.parametrize("function", [run, sweep])
def test_functions_that_start_ranks(function):
    chance = random.Random(0)
    names = ["ranks", "backend", "timeout", "threads", "label"] + ["repeats"] * (function is sweep)
    wrong = []
    for _ in range(60):
        options = {
            name: chance.choice([j for j in JUNK if not isinstance(j, torch.Tensor)])
            for name in chance.sample(names, chance.randint(1, 3))
        }
        if (
            options.get("ranks") in (1, 3, True)
            and len(options) == 1
            or options.get("timeout") in (1, 3, 1.5)
        ):
            continue  # may be fine: this test is about what is not
        try:
            function(chance.choice([None, 3, "x", print]), **options)
        except Exception as error:
            if told := judge(error, f"{function.__name__}({options})"):
                wrong.append(told)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
def test_loading_and_measuring(value, tmp_path):
    from course_lib import measure

    try:
        Job.load(value)
    except (ValueError, TypeError, OSError) as error:
        assert "\n" not in str(error)
    with measure.step(value, value, value):  # outside a job nothing is looked at
        pass
    with measure.span(value):
        pass


def test_functions_that_are_called_by_ranks():
    """Everything in course_lib.mini that needs a process group, in one job: each call that works, then with
    each argument as junk.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # gloo and torch have some, about the calls that work
        job = run(junk.call_mini, ranks=2, backend="gloo", timeout=300)
    assert not job.results[0] and not job.results[1], "\n".join(job.results[0])


def test_every_public_function_of_mini_is_called_by_ranks():
    named = {name for idea in mini.__all__ for name in getattr(mini, idea).__all__}
    without_ranks = {*mini.pipeline.schedules.__all__, "coordinates", "axis_groups"}
    called = {
        part for name in run(junk.names, ranks=1, backend="gloo").results[0] for part in name.split(".")
    }
    assert named - without_ranks - BY_THE_LIBRARY <= called


@pytest.mark.parametrize("name", check.EXERCISES)
def test_checks_refuse_junk_calmly(name):
    """A function that takes the wrong arguments, or any and returns nonsense: `check` never raises and never
    says yes.
    """
    chance = random.Random(name)
    value = chance.choice([j for j in JUNK if not callable(j) and type(j) is not object])
    refused(name, chance.choice([lambda: value, lambda *args, **kwargs: value]))


@pytest.mark.parametrize("value", [None, 3, "x"])
def test_checks_refuse_what_is_no_function(value):
    refused("average", value)
    refused("gradient_norm", value)


def refused(name: str, answer) -> None:
    judged = getattr(check, name)
    verdict = judged(*[answer] * (len(inspect.signature(judged.__wrapped__).parameters) - 1))
    assert not verdict.passed and not verdict.untouched
    told = repr(verdict)
    assert (
        "Traceback" not in told
        and "site-packages" not in told
        and "course_lib/" not in told
        and len(told) < 3000
    ), told
