"""How a template is laid over our pod."""

from __future__ import annotations

import pytest

from executor.kube.pod_template import check_template, merged

OURS = {
    "metadata": {"labels": {"app": "x"}},
    "spec": {
        "containers": [
            {"name": "worker", "env": [{"name": "A", "value": "1"}], "resources": {"limits": {"memory": "1Gi"}}}
        ],
        "tolerations": [{"key": "a"}],
        "restartPolicy": "Never",
        "dnsPolicy": "ClusterFirst",
    },
}


def test_mappings_are_merged_and_none_removes() -> None:
    result = merged(OURS, {"spec": {"dnsPolicy": None, "nodeName": "n"}})
    assert "dnsPolicy" not in result["spec"]
    assert result["spec"]["nodeName"] == "n"
    assert result["spec"]["restartPolicy"] == "Never"


def test_containers_are_merged_by_name() -> None:
    result = merged(OURS, {"spec": {"containers": [{"name": "worker", "tty": True}, {"name": "side", "image": "s"}]}})
    worker, side = result["spec"]["containers"]
    assert worker["tty"] is True
    assert worker["env"] == [{"name": "A", "value": "1"}]
    assert side == {"name": "side", "image": "s"}


def test_environment_is_merged_by_name() -> None:
    theirs = {
        "spec": {"containers": [{"name": "worker", "env": [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]}]}
    }
    (worker,) = merged(OURS, theirs)["spec"]["containers"]
    assert worker["env"] == [{"name": "A", "value": "2"}, {"name": "B", "value": "3"}]


def test_tolerations_are_added_once() -> None:
    result = merged(OURS, {"spec": {"tolerations": [{"key": "a"}, {"key": "b"}]}})
    assert result["spec"]["tolerations"] == [{"key": "a"}, {"key": "b"}]


def test_other_lists_are_replaced() -> None:
    assert merged({"args": [1, 2]}, {"args": [3]}) == {"args": [3]}


def test_ours_stays_as_it_is() -> None:
    before = repr(OURS)
    merged(OURS, {"spec": {"containers": [{"name": "worker", "tty": True}], "tolerations": [{"key": "b"}]}})
    assert repr(OURS) == before


def test_an_item_without_its_merge_key_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'containers' needs 'name'"):
        merged(OURS, {"spec": {"containers": [{"image": "x"}]}})


@pytest.mark.parametrize(
    ("template", "named"),
    [
        ({"containers": []}, "containers"),
        ({"metadata": {"name": "x"}}, r"metadata\.name"),
        ({"metadata": {"namespace": "x"}}, r"metadata\.namespace"),
        ({"metadata": {"labels": {"app": "other"}}}, "labels"),
        ({"spec": {"restartPolicy": "Always"}}, "restartPolicy"),
    ],
)
def test_what_we_find_pods_by_cannot_be_changed(template: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        check_template(template, {"app": "x"})


def test_a_template_is_a_mapping() -> None:
    with pytest.raises(TypeError, match="pod_template must be a mapping"):
        check_template("spec: {}", {})


def test_a_good_template_passes() -> None:
    check_template(
        {"metadata": {"labels": {"app": "x", "team": "y"}}, "spec": {"priorityClassName": "high"}}, {"app": "x"}
    )
