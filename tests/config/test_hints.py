from vlmft.config.hints import did_you_mean


def test_the_nearest_word_is_named() -> None:
    assert did_you_mean("lrr", ["lr", "betas"]) == "; did you mean lr?"


def test_nothing_is_said_where_nothing_is_near() -> None:
    assert did_you_mean("zzz", ["lr", "betas"]) == ""
