"""The memory that is free: of the machine, or of the job's control group if that allows less."""

from __future__ import annotations

import pytest

from anacor_dials.sample.memory import available_memory_bytes

GB = 10**9


def files(root, contents):
    for name, text in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


MACHINE = {"proc/meminfo": "MemTotal: 64000000 kB\nMemAvailable:   32000000 kB\n"}
VERSION_2 = {
    "proc/self/cgroup": "0::/slurm/job_7/step_0\n",
    "sys/fs/cgroup/slurm/job_7/memory.max": f"{8 * GB}\n",
    "sys/fs/cgroup/slurm/job_7/memory.current": f"{5 * GB}\n",
    "sys/fs/cgroup/slurm/job_7/memory.stat": f"anon {4 * GB}\nactive_file {GB // 2}\ninactive_file {GB // 2}\n",
    "sys/fs/cgroup/slurm/job_7/step_0/memory.max": "max\n",
    "sys/fs/cgroup/slurm/job_7/step_0/memory.current": f"{5 * GB}\n",
    "sys/fs/cgroup/slurm/job_7/step_0/memory.stat": "anon 0\n",
}
VERSION_1 = {
    "proc/self/cgroup": "5:devices:/\n4:memory:/job\n0::/\n",
    "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{6 * GB}\n",
    "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{3 * GB}\n",
    "sys/fs/cgroup/memory/job/memory.stat": f"cache {2 * GB}\ntotal_active_file {GB}\ntotal_inactive_file 0\n",
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{3 * GB}\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 0\n",
}


@pytest.mark.parametrize(
    ("contents", "expected"),
    [
        (MACHINE, 32_000_000 * 1024),
        # the limit of the job holds for its steps; pages of files can be given back
        ({**MACHINE, **VERSION_2}, 4 * GB),
        ({**MACHINE, **VERSION_1}, 4 * GB),
        (VERSION_2, 4 * GB),
        # the machine itself has less than the job may take
        ({**VERSION_2, "proc/meminfo": "MemAvailable: 1000 kB\n"}, 1_024_000),
        # in a container: the path is one of the machine outside, the group's files are at the top
        (
            {
                "proc/self/cgroup": "0::/machine/unknown\n",
                "sys/fs/cgroup/memory.max": f"{2 * GB}\n",
                "sys/fs/cgroup/memory.current": f"{GB}\n",
                "sys/fs/cgroup/memory.stat": "anon 0\n",
            },
            GB,
        ),
        # more in use than allowed
        ({**VERSION_2, "sys/fs/cgroup/slurm/job_7/memory.current": f"{99 * GB}\n"}, 0),
        ({"proc/self/cgroup": "nonsense\n"}, None),
        ({}, None),
    ],
)
def test_free_memory(tmp_path, contents, expected):
    files(tmp_path, contents)
    assert available_memory_bytes(tmp_path) == expected
