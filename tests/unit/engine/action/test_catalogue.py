import pytest

from flatline.engine.action.catalogue import (
    BOUNDS,
    SHIPPED,
    Bound,
    Policy,
    parse_policy,
    read_shipped,
)
from flatline.engine.errors import SettingsError

HEAD = 'version = 1\nname = "mine"\n'


def parse(body: str, head: str = HEAD) -> Policy:
    return parse_policy(head + body, source="my.toml")


def test_every_shipped_policy_is_within_the_hard_limits() -> None:
    for name in SHIPPED:
        assert parse_policy(read_shipped(name), source=name).name == name


def test_the_default_only_observes_and_is_as_strict_as_stated() -> None:
    policy = parse_policy(read_shipped("default"), source="default")
    assert policy.mode(tenant="acme", action="reset") == "observe"
    assert policy.limits == parse("").limits
    assert policy.limits.data_age_ms == 120_000
    assert [step.action for step in policy.ladders["panic_spin"]] == [
        "reset",
        "reset",
        "quarantine",
    ]
    assert [step.action for step in policy.ladders["hung_userland"]] == [
        "save_evidence",
        "reboot",
        "notify",
    ]


@pytest.mark.parametrize(
    ("vms", "site", "cell"), [(0, 2, 1), (299, 2, 2), (1_000, 5, 10), (9_999, 20, 20)]
)
def test_budgets_are_shares_with_a_floor_and_a_ceiling(vms: int, site: int, cell: int) -> None:
    limits = parse("").limits
    assert (limits.site_budget(vms), limits.cell_budget(vms)) == (site, cell)


def test_data_may_be_older_where_sampling_is_slow() -> None:
    assert parse("[limits]\ninterval_s = 300\n").limits.data_age_ms == 450_000


def test_tenant_goes_before_action_and_action_before_default() -> None:
    policy = parse(
        '[modes]\ndefault = "observe"\nactions = { reset = "auto" }\n'
        '[modes.tenants.acme]\nreset = "observe"\nmigrate = "auto"\n'
    )
    assert policy.mode(tenant="other", action="reset") == "auto"
    assert policy.mode(tenant="acme", action="reset") == "observe"
    assert policy.mode(tenant="acme", action="migrate") == "auto"
    assert policy.mode(tenant=None, action="reset") == "observe"


def test_back_offs_grow_and_the_last_one_stays() -> None:
    limits = parse("").limits
    assert [limits.backoff_ms(step) for step in (1, 2, 3, 9)] == [
        600_000,
        1_800_000,
        7_200_000,
        7_200_000,
    ]


def test_the_hash_names_the_content_and_not_the_layout() -> None:
    one = parse("[limits]\nvm_per_24h = 2\nnode_per_10min = 1\n")
    other = parse("# same\n[limits]\nnode_per_10min = 1\n\nvm_per_24h = 2\n")
    assert one.hash == other.hash
    assert one.hash != parse("[limits]\nvm_per_24h = 2\n").hash


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda bound: bound.field)
def test_a_value_beyond_a_hard_limit_is_refused_with_the_reason(bound: Bound) -> None:
    for value in (bound.low - 1, bound.high + 1, float("nan")):
        text = f"{value:.0f}" if value == value else "nan"
        with pytest.raises(SettingsError) as refusal:
            parse(f"[limits]\n{bound.field} = {text}\n")
        assert bound.why in str(refusal.value) or "Expected" in str(refusal.value)


def test_only_a_demo_or_a_lab_may_be_younger_and_busier() -> None:
    body = "[limits]\ncell_least = 2\nnewborn_s = 0\nnew_log_observe_s = 0\n"
    with pytest.raises(SettingsError, match="A policy with purpose production allows 0 to 1"):
        parse(body)
    for purpose in ("demo", "lab"):
        assert parse(body, f'{HEAD}purpose = "{purpose}"\n').limits.cell_least == 2
        with pytest.raises(SettingsError, match=f"A policy with purpose {purpose} allows 0 to 2"):
            parse("[limits]\ncell_least = 3\n", f'{HEAD}purpose = "{purpose}"\n')


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[limits]\nsite_per_10mn = 1\n", "did you mean site_per_10min?"),
        ("[mode]\n", "unknown key mode; did you mean modes"),
        ('[ladders]\npanic_spin = [{ acton = "reset" }]\n', "did you mean action"),
        ("[qqqq]\n", "known: version, name"),
        ("[ladders]\npanik_spin = []\n", "is of kind panik_spin; did you mean panic_spin?"),
        ("[ladders]\nqqqq = []\n", "is of kind qqqq; known: panic_spin, panic_halt"),
        ('[modes]\ndefault = "auot"\n', "default: 'auot' is not one of observe, approve, auto."),
        ('[modes]\nactions = { destroy = "auto" }\n', "'destroy' is not one of save_e"),
        ('[modes]\ntenants.a = { reset = "on" }\n', "modes.tenants.a.reset: 'on' is not one of"),
        ('[ladders]\ncrash_loop = [{ action = "x" }]\n', "action: 'x' is not one of notify,"),
        ('[ladders]\nhung_io = [{ action = "reset", needs = ["i"] }]\n', "'i' is not one of activ"),
        ('[ladders]\nhung_io = [{ action = "reset" }, { action = "migrate" }]\n', "milder step"),
        ('[ladders]\nhung_io = [{ action = "quarantine" }, { action = "reset" }]\n', "last step"),
        ('[ladders]\nhung_io = [{ action = "reset", grace_s = 9999 }]\n', "not wait without limit"),
        ('[limits]\nvm_per_24h = "3"\n', "Expected `int`, got `str`"),
        ("[limits]\nbackoff_s = [1, 2, 3]\n", "must not be followed too soon"),
        ('[ladders]\nhung_io = [{ action = "reset", deadline_s = 60 }]\n', "time to observe the"),
        ('[ladders]\nhung_io = [{ action = "reset", stable_s = 300 }]\n', "recovery counts"),
        ("[ladders]\nhung_io = [" + '{ action = "reset" },' * 4 + "]\n", "At most 3"),
        ("[limits\n", "is not TOML"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_used_is_refused_with_what_is_wrong(
    body: str, message: str
) -> None:
    with pytest.raises(SettingsError, match=r"^my\.toml") as refusal:
        parse(body)
    assert message in str(refusal.value)


def test_a_policy_of_a_later_version_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"\$.version"):
        parse_policy('version = 2\nname = "x"\n', source="my.toml")
    with pytest.raises(SettingsError, match=r"Expected `int`, got `str` - at `\$.version`"):
        parse_policy('version = "1"\nname = "x"\n', source="my.toml")
