"""Boards' file trees, written from the documented layouts; where there is no sensor there is a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeprune.bench import jetson, machine, nvml, power, rapl


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def hwmon(address: str, rails: dict[int, tuple[str, int, int]], name: str = "ina3221") -> dict[str, str]:
    """L4T's ina3221 driver: label, millivolt, milliampere of each channel."""
    chip = f"sys/bus/i2c/devices/{address}"
    files = {f"{chip}/name": f"{name}\n"}
    for n, (label, mv, ma) in rails.items():
        at = f"{chip}/hwmon/hwmon3"
        files |= {
            f"{at}/in{n}_label": f"{label}\n",
            f"{at}/in{n}_input": f"{mv}\n",
            f"{at}/curr{n}_input": f"{ma}\n",
        }
    return files


# File layout: kernel.org, Documentation/hwmon/ina3221.rst (in[123]_label, in[123]_input in mV, curr[123]_input in mA,
# in7 the sum of the shunt voltages), found under /sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmonN by the guide below.
# Rails of Orin Nano and Orin NX: docs.nvidia.com/jetson/archives/r36.3/DeveloperGuide/SD/PlatformPowerAndPerformance/
# JetsonOrinNanoSeriesJetsonOrinNxSeriesAndJetsonAgxOrinSeries.html, "Jetson Orin Nano/NX INA3221": VDD_IN is the whole.
ORIN_NANO = hwmon(
    "1-0040",
    {
        1: ("VDD_IN", 5000, 1000),
        2: ("VDD_CPU_GPU_CV", 5000, 300),
        3: ("VDD_SOC", 5000, 200),
        7: ("sum of shunt voltages", 9, 9),
    },
)
ORIN_NX = hwmon(
    "1-0040",
    {1: ("VDD_IN", 19000, 700), 2: ("VDD_CPU_GPU_CV", 19000, 250), 3: ("VDD_SOC", 19000, 150)},
)
# The same page, "Jetson AGX Orin": two chips and no rail for the whole.
AGX_ORIN = hwmon(
    "1-0040", {1: ("VDD_GPU_SOC", 20000, 100), 2: ("VDD_CPU_CV", 20000, 50), 3: ("VIN_SYS_5V0", 5000, 400)}
) | hwmon("1-0041", {1: ("NC", 1, 1), 2: ("VDDQ_VDD2_1V8AO", 5000, 100), 3: ("NC", 1, 1)})
# JetPack 4, iio in place of hwmon: docs.nvidia.com/jetson/archives/l4t-archived/l4t-3275, "Power Management for Jetson
# Nano and Jetson TX1 Devices", rail_name_N and in_powerN_input (mW) under ina3221x.
NANO = {
    "sys/bus/i2c/devices/6-0040/name": "ina3221x\n",
    "sys/bus/i2c/devices/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n",
    "sys/bus/i2c/devices/6-0040/iio:device0/in_power0_input": "2500\n",
    "sys/bus/i2c/devices/6-0040/iio:device0/rail_name_1": "POM_5V_GPU\n",
    "sys/bus/i2c/devices/6-0040/iio:device0/in_power1_input": "500\n",
}
# Jetson Linux Developer Guide r38, "Jetson Thor Product Family": an INA238 measures VIN, the whole (NVIDIA at
# forums.developer.nvidia.com/t/366461); kernel.org, Documentation/hwmon/ina238.rst: power1_input in microwatts.
THOR = hwmon("2-0040", {1: ("VDD_GPU", 20000, 500), 2: ("VDD_CPU_SOC_MSS", 20000, 300)}) | {
    "sys/bus/i2c/devices/2-0044/name": "ina238\n",
    "sys/bus/i2c/devices/2-0044/hwmon/hwmon5/power1_input": "30000000\n",
}


@pytest.mark.parametrize(
    ("tree", "total", "rule", "count"),
    [
        (ORIN_NANO, 5.0, "rail VDD_IN", 3),
        (ORIN_NX, 13.3, "rail VDD_IN", 3),
        (AGX_ORIN, 5.5, "sum of VDD_GPU_SOC, VDD_CPU_CV, VIN_SYS_5V0, VDDQ_VDD2_1V8AO (the module", 4),
        (NANO, 2.5, "rail POM_5V_IN", 2),
        (THOR, 30.0, "rail VIN", 3),
    ],
    ids=["orin-nano", "orin-nx", "agx-orin", "nano", "thor"],
)
def test_power_of_boards(tmp_path: Path, tree: dict[str, str], total: float, rule: str, count: int) -> None:
    sensor, why = jetson.sensor(write(tmp_path, tree))
    assert sensor is not None, why
    assert sensor.watts() == pytest.approx(total)
    assert sensor.rule.startswith(rule)
    assert len(sensor.rails()) == count
    found, _ = power.find(tmp_path)
    assert found is not None
    assert found.source == "INA3221"


def test_no_sensor_is_a_reason_and_not_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_card", lambda: (None, None, "NVML: Driver Not Loaded"))
    assert power.find(tmp_path) == (None, "no INA3221 power monitor (not a Jetson); NVML: Driver Not Loaded")
    why = "no INA3221 power monitor (not a Jetson); no RAPL counters (a virtual machine, or no Intel or AMD processor)"
    assert power.find(tmp_path, "cpu") == (None, why)
    broken = dict(ORIN_NANO)
    broken["sys/bus/i2c/devices/1-0040/hwmon/hwmon3/curr1_input"] = ""
    sensor, why = jetson.sensor(write(tmp_path, broken))
    assert sensor is None
    assert why.startswith("INA3221 is here but cannot be read")


def zone(number: str, name: str, uj: int) -> dict[str, str]:
    """kernel.org, Documentation/power/powercap/powercap.rst: name, energy_uj, max_energy_range_uj of a zone."""
    at = f"sys/class/powercap/intel-rapl:{number}"
    return {f"{at}/name": f"{name}\n", f"{at}/energy_uj": f"{uj}\n", f"{at}/max_energy_range_uj": "1000000\n"}


def test_rapl_adds_packages_and_leaves_their_parts_out(tmp_path: Path) -> None:
    tree = zone("0", "package-0", 100) | zone("1", "package-1", 200) | zone("0:0", "core", 50)
    sensor, why = power.find(write(tmp_path, tree), "cpu")
    assert isinstance(sensor, rapl.Rapl), why
    assert sensor.rule == "sum of package-0, package-1 (processor, not the machine)"
    assert sensor.energy_j() == 0.0
    write(tmp_path, zone("0", "package-0", 600_100) | zone("1", "package-1", 900_200))
    assert sensor.energy_j() == pytest.approx(1.5)
    write(tmp_path, zone("0", "package-0", 100))  # the counter of package-0 turned over
    assert sensor.energy_j() == pytest.approx(1.5 + 0.4)
    assert set(sensor.rails()) == {"package-0", "package-1"}


def test_rapl_takes_the_platform_where_it_is_measured(tmp_path: Path) -> None:
    sensor, _ = rapl.sensor(write(tmp_path, zone("0", "package-0", 100) | zone("1", "psys", 200)))
    assert sensor is not None
    assert sensor.rule == "zone psys (the platform)"
    write(tmp_path, zone("0", "package-0", 500_000) | zone("1", "psys", 700_200))
    assert sensor.energy_j() == pytest.approx(0.7)


def test_rapl_for_root_alone_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, zone("0", "package-0", 100))
    real = Path.read_text

    def refuse(path: Path, *args: Any, **more: Any) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    sensor, why = rapl.sensor(tmp_path)
    assert sensor is None
    assert "readable by root alone: sudo chmod a+r" in why


def test_a_card_is_not_measured_for_work_on_the_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvml, "_card", lambda: (Library(50_000), 0, ""))
    assert getattr(power.find(tmp_path, "cuda")[0], "source", None) == "NVML"
    assert power.find(tmp_path, "cpu")[0] is None
    write(tmp_path, zone("0", "package-0", 100))
    assert getattr(power.find(tmp_path, "cpu")[0], "source", None) == "RAPL"


def test_throttling_is_counted_where_the_hardware_counts_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert machine.throttled(tmp_path) is None
    # x86: /sys/devices/system/cpu/cpuN/thermal_throttle; Jetson: ocN_event_cnt, "OC Event Count" of the guide above.
    core = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    board = "sys/class/hwmon/hwmon1/oc1_event_cnt"
    write(tmp_path, {core: "3\n", board: "4\n"})
    monkeypatch.setattr(nvml, "_card", lambda: (None, None, "none"))
    watch = machine.Watch(every_s=0, root=tmp_path)
    write(tmp_path, {board: "6\n"})
    watch()
    assert [s["throttled"] for s in watch.states] == [7, 9]
    assert any("throttled itself 2 times" in w for w in watch.warnings())


def test_facts_of_a_jetson(tmp_path: Path) -> None:
    gpu = "sys/class/devfreq/17000000.gpu"
    write(
        tmp_path,
        {
            "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
            "etc/os-release": 'NAME="Ubuntu"\nPRETTY_NAME="Ubuntu 22.04.5 LTS"\n',
            "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
            "proc/meminfo": "MemTotal:        7802908 kB\n",
            "proc/cpuinfo": "Features\t: fp asimd asimddp\nmodel name\t: ARMv8 Processor rev 1 (v8l)\n",
            "var/lib/nvpmodel/status": "pmode:0002\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "schedutil\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1510400\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_max_freq": "1728000\n",
            "sys/class/thermal/thermal_zone0/temp": "54250\n",
            f"{gpu}/cur_freq": "306000000\n",
            f"{gpu}/min_freq": "306000000\n",
            f"{gpu}/max_freq": "918000000\n",
        },
    )
    made = machine.describe(tmp_path)
    assert (made["l4t"], made["power_mode"], made["governor"]) == ("36.4.3", "pmode:0002", "schedutil")
    assert (made["board"], made["os"]) == ("NVIDIA Jetson Orin Nano Developer Kit", "Ubuntu 22.04.5 LTS")
    assert made["memory_bytes"] == 7802908 * 1024
    assert made["cpu"]["name"] == "ARMv8 Processor rev 1 (v8l)"
    assert made["cpu"]["features"] == ["asimd", "asimddp"]
    now = machine.state(tmp_path)
    assert (now["cpu_mhz"], now["cpu_max_mhz"], now["temp_c"]) == (1510.4, 1728.0, 54.25)
    assert jetson.gpu_clock(tmp_path) == {"cur": 306000000, "min": 306000000, "max": 918000000}


def test_every_null_has_its_reason(tmp_path: Path) -> None:
    for root in (tmp_path, Path("/")):
        made = machine.describe(root)
        nulls = {key for key, value in made.items() if value is None}
        assert nulls == set(made["reasons"])
        assert all(made["reasons"].values())
    assert machine.usable_cores() >= 1
    assert (machine.peak_memory() or 1) > 0


def test_watch_says_what_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter(
        {"cpu_mhz": c, "load": 99.0, "gpu": {"slowdowns": s}}
        for c, s in ((1000, []), (2000, ["HwSlowdown"]), (1000, []))
    )
    monkeypatch.setattr(machine, "state", lambda root: next(states))
    watch = machine.Watch(every_s=0)
    watch()
    made = watch.to_json()
    assert (made["before"]["cpu_mhz"], made["during"]["cpu_mhz"], made["after"]["cpu_mhz"]) == (
        1000,
        2000,
        1000,
    )
    said = " | ".join(watch.warnings())
    assert "moved between 1000 and 2000 MHz" in said
    assert "HwSlowdown" in said
    assert "busy" not in said, "what is measured makes load itself"


def test_a_machine_is_busy_when_more_waits_than_it_has_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 2)
    assert machine.busy({"load": 99.0}) == ["the machine was busy before: load 99.0 on 2 cores"]
    assert machine.busy({"load": 2.0}) == machine.busy({"load": None}) == []


def test_integral_is_the_trapezoid_between_its_ends() -> None:
    times, watts = np.asarray([0.0, 1, 2, 3]), np.asarray([0.0, 10, 20, 30])
    assert power.integrate(times, watts, 0.5, 2.5) == pytest.approx((2.5**2 - 0.5**2) * 5)
    assert power.integrate(times, watts, 1.2, 1.4) == pytest.approx((1.4**2 - 1.2**2) * 5)


class Fake:
    source, rule, rate_hz = "fake", "all of it", 500.0

    def __init__(self, counter: bool) -> None:
        self.counter, self.joules = counter, 0.0

    def watts(self) -> float:
        return 4.0

    def rails(self) -> dict[str, float]:
        return {}

    def energy_j(self) -> float | None:
        self.joules += 3.0
        return self.joules if self.counter else None


@pytest.mark.parametrize("counter", [False, True])
def test_energy_of_an_image(counter: bool) -> None:
    calls: list[int] = []
    made = power.energy(Fake(counter), lambda: calls.append(1), batch=2, load_s=0.05, idle_s=0.02, rest_s=0)
    images = 2 * len(calls)
    assert made.idle_w == 4.0
    if counter:
        assert made.method == "counter"
        assert made.gross_mj == pytest.approx(3000 / images)
    else:
        assert made.mean_w == pytest.approx(4.0)
        assert made.net_mj == pytest.approx(0, abs=1e-9)
    assert made.to_json()["source"] == "fake"


def test_sensor_that_fails_under_way_is_an_error_and_not_a_number() -> None:
    class Failing(Fake):
        def watts(self) -> float:
            raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        power.energy(Failing(False), lambda: None, batch=1, load_s=0, idle_s=0, rest_s=0)


class Library:
    """pynvml as the driver of a card answers; on Tegra power is not supported."""

    class NVMLError(Exception): ...

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, power_mw: int | None) -> None:
        self.power_mw = power_mw

    def __getattr__(self, name: str) -> Any:
        answers = {
            "nvmlDeviceGetPowerUsage": self.power_mw,
            "nvmlDeviceGetName": "card",
            "nvmlDeviceGetCudaComputeCapability": (8, 7),
            "nvmlSystemGetDriverVersion": "1.2",
            "nvmlDeviceGetClockInfo": 1500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": 0x48,
        }

        def ask(*_: Any) -> Any:
            if answers.get(name) is None:
                raise self.NVMLError("Not Supported")
            return answers[name]

        return ask


def test_nvml_values_are_probed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvml, "_card", lambda: (Library(None), 0, ""))
    assert nvml.sensor() == (None, "NVML: power: Not Supported")
    monkeypatch.setattr(nvml, "_card", lambda: (Library(50_000), 0, ""))
    sensor, _ = nvml.sensor()
    assert sensor is not None
    assert (sensor.watts(), sensor.energy_j()) == (50.0, None)
    card, _ = nvml.describe()
    assert card == {"name": "card", "sm": "8.7", "driver": "1.2", "memory_bytes": None}
    assert nvml.state() == {
        "sm_mhz": 1500,
        "memory_mhz": 1500,
        "temp_c": None,
        "slowdowns": ["HwThermalSlowdown", "HwSlowdown"],
    }
