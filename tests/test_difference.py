from bocage.difference import describe_difference


def test_what_differs_is_named_with_both_values():
    before = {"size": 32, "same": 1, "model": {"width": 128, "kind": "a"}, "contents": "ab"}
    now = {"size": 64, "same": 1, "model": {"width": 192, "kind": "a"}, "contents": "cd"}
    assert describe_difference(before, now) == (
        "size 32 (now 64); model.width 128 (now 192); other contents of its input files"
    )
    assert describe_difference(now, now) == ""


def test_long_values_are_not_written_out_and_many_are_counted():
    before = {"sources": ["x" * 60], **dict.fromkeys("abc", 1)}
    now = {"sources": ["y" * 60], **dict.fromkeys("abc", 2)}
    assert describe_difference(before, now) == "other sources; a 1 (now 2); b 1 (now 2) and 1 more"
    assert describe_difference({"gone": 1}, {"new": "x"}) == "gone 1 (now None); new None (now 'x')"
