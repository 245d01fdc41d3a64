"""Nonsense for every public function: an answer, or a typed error in one sentence from this library; never a hang, never a library's stack."""
import importlib
import inspect
import itertools
import random
import traceback
import warnings

import matplotlib.pyplot
import pytest
import torch

matplotlib.use("Agg")

from course_lib import Job, run, sweep  # noqa: E402

JUNK = [None, -1, 0, 1, 3, 1.5, float("nan"), float("inf"), -2.0, "", "x", "all_reduce", b"x", (), [], [None], [1, -1], {}, {"a": None}, object(), True,
        10**30, lambda: 1, torch.ones(2), int, "/no/such/file"]
MODULES = ["theory", "plots", "datasets", "models", "styles", "overlap", "sleeping", "bubble", "pictures", "alive", "links", "mini.schedules", "mini.hybrid"]


def public_functions():
    for name in MODULES:
        module = importlib.import_module(f"course_lib.{name}")
        for attribute in module.__all__:
            value = getattr(module, attribute)
            if (inspect.isfunction(value) or inspect.isclass(value)) and attribute != "make_groups":      # which needs ranks
                yield f"{name}.{attribute}", value


def calls(function, count):
    """Argument lists: each parameter alone as junk where the others have defaults, then random mixtures."""
    parameters = [p for p in inspect.signature(function).parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
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


def judge(error: BaseException, call: str) -> str | None:
    """What is wrong with an error, or None."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1].filename
    if not isinstance(error, (ValueError, TypeError)):
        return f"{call}: {type(error).__name__}: {error}"
    if "\n" in str(error) or not str(error):
        return f"{call}: not one sentence: {error!r}"
    if "course_lib" not in last and "test_fuzz" not in last:
        return f"{call}: raised inside {last.split('/')[-1]}: {error}"
    if "<lambda>() takes" in str(error):
        return None                               # the junk itself was called, and says so
    own_words = frames[-1].line and "raise" in frames[-1].line or "course_lib" not in last
    lines = "".join(frame.line or "" for frame in frames[-1:])
    return None if own_words or lines.startswith(("raise", "f\"", "\"")) else f"{call}: not checked, stumbled at `{frames[-1].line}`: {error}"


@pytest.mark.parametrize("name, function", list(public_functions()), ids=lambda value: value if isinstance(value, str) else "")
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
                shown = ", ".join(f"{k}={v!r}" for k, v in keywords.items())
                if (wrong := judge(error, f"{name}({shown})")):
                    found.setdefault(wrong.split(":", 1)[1][:60], wrong)
    matplotlib.pyplot.close("all")
    assert not found, "\n".join(found.values())


@pytest.mark.parametrize("function", [run, sweep])
def test_functions_that_start_ranks(function):
    chance = random.Random(0)
    names = ["ranks", "backend", "timeout", "threads", "label"] + ["repeats"] * (function is sweep)
    wrong = []
    for _ in range(60):
        options = {name: chance.choice([j for j in JUNK if not isinstance(j, torch.Tensor)]) for name in chance.sample(names, chance.randint(1, 3))}
        if options.get("ranks") in (1, 3, True) and len(options) == 1 or options.get("timeout") in (1, 3, 1.5):
            continue                              # may be fine: this test is about what is not
        try:
            function(chance.choice([None, 3, "x", print]), **options)
        except Exception as error:
            if (told := judge(error, f"{function.__name__}({options})")):
                wrong.append(told)
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("value", JUNK, ids=lambda value: type(value).__name__)
def test_loading_and_measuring(value, tmp_path):
    from course_lib import measure
    try:
        Job.load(value)
    except (ValueError, TypeError, OSError) as error:
        assert "\n" not in str(error)
    with measure.step(value, value, value):       # outside a job nothing is looked at
        pass
    with measure.span(value):
        pass
