"""What a body reads that nothing sees change is said on the card of its step, with the remedy."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas
import pytest

from tagent_nb import Pipeline, PipelineStep
from tagent_nb.pipeline import file_arguments, step_hints


def hints(code: str, variables: dict[str, Any] | None = None, **options: Any) -> list[str]:
    pipeline = Pipeline("p").put(PipelineStep.from_cell("load", code, python=True, **options))
    pipeline.variables = variables
    return step_hints(pipeline, pipeline.get_step("load"))


@pytest.mark.parametrize(
    ("code", "beginning"),
    [
        ("import requests\nrequests.get('x').text", "what requests gets from the network is not seen"),
        ("from urllib.request import urlopen\nurlopen('x').read()", "what urllib gets from the network"),
        ("import sqlalchemy as sa\nsa.create_engine('x')", "what sqlalchemy gets from a database"),
        ("import boto3\nboto3.client('s3')", "what boto3 gets from a service"),
        ("import polars as pl\npl.scan_csv(f'{1}.csv')", "which file scan_csv(...) reads is not seen"),
        ("import pandas as pd\npd.read_parquet(name())", "which file read_parquet(...) reads is not seen"),
        ("import random\nrandom.random()", "random.random() gives another value in every run"),
        ("from random import choice\nchoice([1])", "choice() gives another value"),
        (
            "import numpy as np\nnp.random.default_rng().random()",
            "np.random.default_rng() gives another value",
        ),
        ("import uuid\nstr(uuid.uuid4())", "uuid.uuid4() gives another value"),
        ("import time\ntime.time()", "time.time() gives another value"),
        ("from datetime import datetime\ndatetime.now().year", "datetime.now() gives another value"),
        ("import pandas as pd\npd.Timestamp.now()", "pd.Timestamp.now() gives another value"),
        ("import secrets\nsecrets.token_hex()", "secrets.token_hex() gives another value"),
    ],
)
def test_what_is_not_seen_to_change_is_said_with_the_remedy(code: str, beginning: str) -> None:
    (hint,) = hints(code)
    assert hint.startswith(beginning)
    assert "--no-cache" in hint
    assert hints(code, cache=False) == hints(code, fresh_for="1h") == []


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(0)\n1",
        "import random\nrandom.Random(7).random()",
        "import random\nrandom.seed(7)\nrandom.random()",
        "import numpy as np\nnp.random.default_rng(7).random()",
        "import pandas as pd\npd.DataFrame({'a': [1]}).sample(random_state=1)",
        "import pandas as pd\npd.read_csv(name())",
        "import pandas as pd\npd.read_parquet('d.parquet')",
        "import pandas as pd\npd.read_parquet()",
        "from .near import random\nrandom()",
        "load_rows = [lambda: 1]\nload_rows[0]()",
        "row = {'time': 1}\nrow['time']",
    ],
)
def test_what_is_seen_or_the_same_each_time_needs_no_hint(code: str) -> None:
    assert hints(code) == []


def test_modules_of_the_notebook_are_known_by_the_names_that_it_gave_them() -> None:
    names: dict[str, Any] = {"dice": random, "pd": pandas, "requests": ModuleType("requests")}
    assert hints("dice.random()", names)[0].startswith("dice.random() gives another value")
    assert hints("requests.get(url)", names)[0].startswith("what requests gets")
    assert hints("dice.random()") == hints("requests.get(url)") == []


def read_rows(path: str, rows: list[Any]) -> list[Any]:
    return [path, *rows]


@functools.cache
def remembered() -> int:
    return 1


def test_a_function_that_remembers_what_it_returned_hides_what_it_has_read() -> None:
    """From the notebook, and from the module of a function."""
    (hint,) = hints("remembered()", {"remembered": remembered})
    assert hint.startswith(
        "remembered remembers what it has returned (functools.cache): a file that it has read"
    )
    pipeline = Pipeline("p")

    @pipeline.task
    def load() -> int:
        return remembered()

    assert step_hints(pipeline, pipeline.get_step("load")) == [hint]


def test_a_function_without_a_readable_text_has_no_hint() -> None:
    pipeline = Pipeline("p")
    pipeline.task(eval("lambda: 1"), name="load")
    assert step_hints(pipeline, pipeline.get_step("load")) == []


def test_a_function_says_by_its_own_module_what_names_mean() -> None:
    pipeline = Pipeline("p")
    pipeline.task(lambda: random.random(), name="load")
    assert step_hints(pipeline, pipeline.get_step("load"))[0].startswith(
        "random.random() gives another value"
    )


def test_a_name_that_the_body_assigns_is_not_that_of_the_notebook() -> None:
    code = "import pandas as pd\npath = 'a' + '.parquet'\npd.read_parquet(path)"
    body = PipelineStep.from_cell("load", code, python=True).body
    assert body is not None
    assert file_arguments(body, {"path": "b.parquet"}) == []
    assert hints(code, {"path": "b.parquet"})[0].startswith("which file read_parquet(...) reads is not seen")


def test_a_lambda_of_several_lines_is_not_looked_into() -> None:
    """Its text is no Python by itself."""
    pipeline = Pipeline("p")
    functions = [
        lambda: [1, 2],
        lambda load: (
            read_rows("a.csv", load)
        ) ]  # fmt: skip
    for name, function in zip(("load", "rows"), functions, strict=True):
        pipeline.task(function, name=name)
    assert step_hints(pipeline, pipeline.get_step("rows")) == []
    assert pipeline.run()["rows"] == ["a.csv", 1, 2]


def test_the_nearest_meaning_of_a_name_counts() -> None:
    body = PipelineStep.from_cell(
        "load", "[read_parquet(a), read_parquet(b), read_parquet(7), [read_table][0](a)]", python=True
    ).body
    assert body is not None
    assert file_arguments(body, {"a": "near"}, {"a": "far", "b": 7}) == ["near"]
    assert file_arguments(body, {"b": Path("here") / "d"}) == ["here/d"]
