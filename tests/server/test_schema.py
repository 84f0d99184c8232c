"""The OpenAPI schema against the server: schemathesis sends what it allows and what it forbids, and checks answers."""

from __future__ import annotations

import warnings
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from serving import TOKEN, image_bytes, running

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    schemathesis = pytest.importorskip("schemathesis", reason="fuzzing needs pip install schemathesis")

from schemathesis.checks import negative_data_rejection
from schemathesis.specs.openapi.checks import positive_data_acceptance

PICTURES = st.sampled_from(
    [image_bytes((9 + seed, 12), seed=seed, kind=kind) for seed in range(4) for kind in ("JPEG", "PNG", "WEBP")]
)
FOCUSED = {  # what each route must give at least once, lest everything was refused at the door
    "POST /api/v1/search": 200,
    "POST /api/v1/search/stored": 200,
    "POST /api/v1/explain": 200,
    "GET /api/v1/images": 200,
}


@pytest.fixture(scope="module")
def schema(photos, small_encoder, tmp_path_factory):
    from distcam.index import Gallery

    folder = tmp_path_factory.mktemp("fuzzed")
    gallery = Gallery.build(photos, small_encoder, out=folder / "g", precision="fp32")
    for kind in ("image/jpeg", "image/png", "image/webp"):
        schemathesis.openapi.media_type(kind, PICTURES)
    with running(gallery.folder, token=TOKEN, max_upload_bytes=1 << 20, concurrency=1000) as url:
        yield schemathesis.openapi.from_url(f"{url}/api/v1/openapi.json")


def fuzz(schema, *, examples: int, mode, headers) -> dict[str, set[int]]:
    """Send cases to every operation; the statuses of each.

    What the schema allows may still be refused: it cannot say that a box has four edges or none, or what a filter is.
    And schemathesis takes some forms for wrong that are right, those with empty lists.
    """
    seen: dict[str, set[int]] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        has_form = "multipart/form-data" in [body.media_type for body in operation.body]
        excluded = [positive_data_acceptance] + ([negative_data_rejection] if has_form else [])
        statuses = seen.setdefault(f"{operation.method.upper()} {operation.path}", set())

        def check(case):
            response = case.call(headers=headers)
            statuses.add(response.status_code)  # noqa: B023  (called before the next operation's turn)
            case.validate_response(response, headers=headers, excluded_checks=excluded)  # noqa: B023

        quietly = settings(
            max_examples=examples,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        with suppress(Unsatisfiable):  # a route that takes nothing cannot be asked wrongly
            quietly(given(case=operation.as_strategy(generation_mode=mode))(check))()
    return seen


MODES = [schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE]
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize(("mode", "headers"), [(MODES[0], BEARER), (MODES[1], {})], ids=["allowed", "forbidden"])
def test_no_request_of_the_schema_breaks_the_server(schema, mode, headers):
    fuzz(schema, examples=2, mode=mode, headers=headers)


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES, ids=["allowed", "forbidden"])
@pytest.mark.parametrize("headers", [{}, BEARER], ids=["stranger", "owner"])
def test_thousands_of_requests_do_not_break_the_server(schema, mode, headers):
    seen = fuzz(schema, examples=300, mode=mode, headers=headers)
    if mode is schemathesis.GenerationMode.POSITIVE:
        assert all(status in seen[operation] for operation, status in FOCUSED.items()), seen
        assert not headers or 201 in seen["POST /api/v1/images"]
