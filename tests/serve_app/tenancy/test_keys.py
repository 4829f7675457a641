import pytest

from serve_app.tenancy.keys import CLASSES, ApiKey, KeyBook, PriorityClass, Tenant, check_tenant


def key(**fields: object) -> ApiKey:
    return ApiKey(id="abcd2345", digest="0" * 64, tenant="acme", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("tenant", ["", "a b", "a:b", "{a}", "-a", "a" * 65, "é", "a\n"])
def test_tenant_names_are_safe_in_keys_and_labels(tenant: str) -> None:
    with pytest.raises(ValueError, match="tenant"):
        check_tenant(tenant)


@pytest.mark.parametrize("model", ["", "a,b", "a b", "x" * 129, "é"])
def test_ids_of_models_are_safe_in_lists(model: str) -> None:
    with pytest.raises(ValueError, match="models"):
        key(models=(model,))
    assert key(models=("deepseek-ai/DeepSeek-R1:int8",)).models


@pytest.mark.parametrize("of_key", CLASSES)
@pytest.mark.parametrize("of_tenant", CLASSES)
def test_the_lower_class_of_key_and_tenant_counts(
    of_key: PriorityClass, of_tenant: PriorityClass
) -> None:
    book = KeyBook(tenants={"acme": Tenant(max_class=of_tenant)})
    rank = max(CLASSES.index(of_key), CLASSES.index(of_tenant))
    assert book.class_of(key(max_class=of_key)) == CLASSES[rank]
    assert KeyBook().class_of(key(max_class=of_key)) == of_key
