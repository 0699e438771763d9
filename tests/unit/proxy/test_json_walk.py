"""Walks through long bodies: what they have found, and what they find when they go on."""

import orjson

from proxy.json_walk import WALKED_FREELY, Walk


def test_texts_are_found_anew_where_a_walk_goes_on():
    root = [{"type": "near"}, {"a": {"b": {"type": "far"}}}, *({"n": 1} for _ in range(2 * WALKED_FREELY))]
    walk = Walk(root, orjson.dumps(root))
    assert walk.texts_at("type") == {"near"}
    assert walk.objects({"type"}, (b'"far"',))
    assert walk.texts_at("type") == {"near", "far"}


def test_what_is_no_text_is_no_text():
    root = [{"type": ["a"]}, {"type": None}, {"type": 1}, {"other": "b"}]
    walk = Walk(root, orjson.dumps(root))
    assert walk.texts_at("type") == set()
    assert walk.texts_at("absent") == set()
