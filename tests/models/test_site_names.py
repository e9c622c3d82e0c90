from petkit.models.site_names import patterns_of


def test_names_that_differ_in_numbers_are_one():
    names = [f"layers.{i}.{name}.lora" for i in range(12) for name in ("q", "v1")]
    assert patterns_of([*names, "head.3.lora"]) == [
        "layers.*.q.lora (12)",
        "layers.*.v1.lora (12)",
        "head.3.lora",
    ]
    assert patterns_of([]) == []
