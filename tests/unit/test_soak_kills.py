"""Who a soak kills, and when: a function of the seed; and how it tells processes apart."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.soak.kills import RAY_PARTS, Kill, Killed, Killer, plan_kills, victims
from tests.soak.processes import Process, name_of
from workers.stack import PROCESSES


def test_plan_of_a_seed_is_always_the_same_and_of_another_seed_another() -> None:
    names = victims(1, whole_ray=True)
    plan = plan_kills(names, seed=1, from_s=10, until_s=100)
    assert plan == plan_kills(names, seed=1, from_s=10, until_s=100)
    assert plan != plan_kills(names, seed=2, from_s=10, until_s=100)


def test_plan_kills_each_once_in_the_time_there_is() -> None:
    names = victims(0, whole_ray=True)
    plan = plan_kills(names, seed=0, from_s=10, until_s=100)
    assert sorted(kill.victim for kill in plan) == sorted(names)
    times = [kill.at_s for kill in plan]
    assert times == sorted(times)
    assert 10 <= times[0] <= times[-1] < 100


def test_plan_spreads_kills_over_all_of_the_time() -> None:
    plan = plan_kills([str(number) for number in range(9)], seed=0, from_s=0, until_s=90)
    assert [int(kill.at_s // 10) for kill in plan] == list(range(9))


def test_plan_without_time_is_refused() -> None:
    with pytest.raises(ValueError, match="expected 0 <= from < until"):
        plan_kills(["a"], seed=0, from_s=5, until_s=5)


def test_every_supervised_process_and_every_kind_of_ray_worker_is_a_victim() -> None:
    for seed in range(5):
        short = victims(seed, whole_ray=False)
        assert set(PROCESSES) <= set(short)
        assert {"replica", "lrm trainer", "two-tower trainer", "kafka", "decoder"} <= set(short)
        assert len(set(short) & set(RAY_PARTS)) == 1
    assert set(RAY_PARTS) <= set(victims(0, whole_ray=True))


@pytest.mark.parametrize(
    ("cmdline", "name"),
    [
        (["python", "-m", "freshet", "worker", "uploads"], "uploads"),
        (["python", "-m", "freshet", "table", "run"], "table"),
        (["python", "-m", "freshet", "table", "build"], "table build"),
        (["python", "-m", "freshet", "up"], "up"),
        (["java", "-cp", "a.jar", "kafka.Kafka", "server.properties"], "kafka"),
        (["python", "-m", "infra.ray_head"], "ray head"),
        (["ray::ServeReplica:freshet:recommender.recommend"], "replica"),
        (["ray::TwoTowerTrainerActor.run_round"], "two-tower trainer"),
        (["ray::IDLE"], "ray worker"),
        (["lib/ray/core/src/ray/raylet/raylet", "--session_dir=x"], "raylet"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main; …"], "decoder"),
    ],
)
def test_process_is_named_by_what_it_is(cmdline: list[str], name: str) -> None:
    assert name_of(cmdline) == name


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_killer_waits_for_its_time_and_for_a_victim_that_is_just_starting() -> None:
    there: list[Process] = []
    killer = Killer([Kill(5.0, "serve")], lambda: there)
    assert killer.kill_due(4.9) is None
    assert killer.kill_due(6.0) is None
    victim = sleeper()
    there.append(Process("serve", victim.pid, time.time()))
    killed = killer.kill_due(7.0)
    assert killed is not None
    assert victim.wait(60) == -9
    assert (killed.pid, killer.left) == (victim.pid, [])


def test_victim_that_is_not_there_does_not_keep_the_next_from_being_killed() -> None:
    victim = sleeper()
    there = [Process("train", victim.pid, time.time())]
    killer = Killer([Kill(5.0, "serve"), Kill(6.0, "train")], lambda: there)
    killed = killer.kill_due(7.0)
    assert killed is not None
    assert victim.wait(60) == -9
    assert (killed.victim, killer.left) == ("train", ["serve"])


def test_two_that_are_late_are_not_killed_together() -> None:
    victims = [sleeper(), sleeper()]
    there = [Process(str(n), one.pid, time.time()) for n, one in enumerate(victims)]
    killer = Killer([Kill(5.0, "0"), Kill(6.0, "1")], lambda: there, gap_s=4.0)
    assert killer.kill_due(20.0) is not None
    assert killer.kill_due(23.0) is None
    assert killer.kill_due(24.0) is not None
    assert [one.wait(60) for one in victims] == [-9, -9]


def test_victim_is_back_when_there_is_one_of_its_name_that_was_not_there_before() -> None:
    killed, neighbour = Process("actor", 7, 10.0), Process("actor", 8, 10.0)
    there = [neighbour, Process("train", 9, 150.0)]
    killer = Killer([], lambda: there)
    killer.killed.append(Killed("actor", 7, at_s=100.0, there=frozenset({killed, neighbour})))
    killer.look()
    assert killer.killed[0].back_s is None
    there.append(Process("actor", 11, created_s=50.0))  # Ray had it ready, under another name
    killer.look()
    assert killer.killed[0].back_s is not None
