"""Sources: candidates with their origin, from documentation pages and from folders."""

from __future__ import annotations

import os
from collections import Counter
from itertools import islice

import pytest
from test_extract import installed_docs, mdbook_block, rustdoc_block

from nanochat_lib.data import select
from nanochat_lib.data.sources.folder import folder_candidates
from nanochat_lib.data.sources.packages import PackageFinder
from nanochat_lib.data.sources.toolchain import toolchain_candidates
from nanochat_lib.errors import WorkbenchError

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy"
FUNCTION = "/// Adds.\npub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n"


def read_folder(folder, **changes):
    arguments = {"seed": 0, "most": 1000, "skipped": Counter()} | changes
    return list(folder_candidates(folder, **arguments))


def put(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


@pytest.fixture
def docs(tmp_path):
    """A small documentation folder with one of everything."""
    listing = "fn main() {\n    let a = 1;\n    assert_eq!(a, 1);\n}"
    source = "\n".join(
        f"<a href=#{n} id={n} data-nosnippet>{n}</a>{line}"
        for n, line in enumerate(
            [
                "/// ```no_run",
                "/// wait_for(&quot;network&quot;);",
                "/// ```",
                *FUNCTION.splitlines(),
            ],
            1,
        )
    )
    return put(
        tmp_path / "html",
        {
            "std/vec/struct.Vec.html": rustdoc_block("let v = 1;", "fn main() { let v = 1; }"),
            "std/net/fn.x.html": rustdoc_block('wait_for("network");', "fn main() {}"),
            "std/primitive.u8.html": rustdoc_block("let n = 1u8;", "fn main() {}"),
            "std/primitive.slice.html": rustdoc_block("let s = [1];", "fn main() {}"),
            "book/ch04-01-a.html": mdbook_block(listing),
            "book/print.html": mdbook_block(listing),
            "book/2018-edition/index.html": mdbook_block("fn old() {}"),
            "book/2018-edition/ch01.html": mdbook_block("fn old() {}"),
            "rust-by-example/flow_control/if.html": mdbook_block("fn rbe() {}"),
            "src/core/math.rs.html": f'<pre class="rust"><code>{source}\n</code></pre>',
            "src/core/sys/unix.rs.html": f'<pre class="rust"><code>{source}\n</code></pre>',
        },
    )


def test_documentation_gives_every_example_once_with_its_chapter(docs):
    found = {c.row.source_id: c for c in toolchain_candidates(docs)}
    groups = {key.removeprefix("toolchain_docs/"): c.row.group for key, c in found.items()}
    assert groups == {
        "core/src/core/math.rs.html#0": "std::math",
        "std/std/net/fn.x.html#0": "std::net",
        "std/std/primitive.slice.html#0": "std::slice",
        "std/std/primitive.u8.html#0": "std::num",
        "std/std/vec/struct.Vec.html#0": "std::vec",
        "book/book/ch04-01-a.html#0": "book::ch04",
        "rust-by-example/rust-by-example/flow_control/if.html#0": "rust-by-example::flow_control",
    }
    assert {c.row.licence for c in found.values()} == {"MIT OR Apache-2.0"}
    assert found["toolchain_docs/core/src/core/math.rs.html#0"].row.text.endswith(FUNCTION.rstrip())


def test_a_no_run_mark_in_the_source_reaches_the_page(docs):
    runnable = {c.row.text: c.row.runnable for c in toolchain_candidates(docs)}
    assert runnable['wait_for("network");'] is False
    assert runnable["let v = 1;"] is True


def test_a_folder_without_pages_names_the_component_to_install(tmp_path):
    with pytest.raises(WorkbenchError, match="rustup component add rust-docs"):
        list(toolchain_candidates(tmp_path))


def test_installed_documentation_yields_many_distinct_examples():
    some = islice(toolchain_candidates(installed_docs()), 2500)  # of about 11,000
    stable = [c for c in select.drop_repeats(some).kept if not select.needs_nightly(c)]
    assert len(stable) > 1000
    assert len({c.row.group for c in stable}) > 20
    assert len({c.row.source_id for c in stable}) == len(stable)
    assert all(c.row.text.strip() and "<span" not in c.row.text for c in stable)


def test_a_folder_gives_files_and_slices_with_package_and_licence(tmp_path):
    put(
        tmp_path,
        {
            "a/Cargo.toml": '[package]\nname = "alpha"\nlicense = "MIT/Apache-2.0"\nedition="2018"',
            "a/src/lib.rs": FUNCTION + "#[test]\nfn works() {\n    assert_eq!(add(1, 1), 2);\n}\n",
            "a/target/debug/build.rs": FUNCTION,
            "b/LICENSE-MIT": MIT,
            "b/LICENSE-APACHE": "Apache License\nVersion 2.0",
            "b/x.rs": FUNCTION,
            "loose.rs": FUNCTION,
        },
    )
    rows = {c.row.source_id: c for c in read_folder(tmp_path)}
    whole = rows["folder/alpha/a/src/lib.rs#file"]
    assert (whole.row.licence, whole.edition, whole.row.runnable) == (
        "MIT OR Apache-2.0", "2018", True,
    )  # fmt: skip
    part = rows["folder/alpha/a/src/lib.rs#0"]
    assert (part.row.kind, part.row.text, part.row.runnable) == (
        "function", FUNCTION.rstrip(), False,
    )  # fmt: skip
    assert rows["folder/b/b/x.rs#file"].row.licence == "MIT OR Apache-2.0"
    assert rows[f"folder/{tmp_path.name}/loose.rs#file"].row.licence == "unknown"
    assert not any("target" in key for key in rows)


def test_a_licence_is_inherited_from_the_workspace(tmp_path):
    put(
        tmp_path,
        {
            "Cargo.toml": '[workspace.package]\nlicense = "Zlib"\nedition = "2021"',
            "m/Cargo.toml": '[package]\nname="m"\nlicense.workspace=true\nedition.workspace=true',
            "m/src/lib.rs": FUNCTION,
        },
    )
    package = PackageFinder(tmp_path).package_of(tmp_path / "m/src/lib.rs")
    assert (package.name, package.licence, package.edition) == ("m", "Zlib", "2021")


def test_what_cannot_be_read_is_counted_and_the_rest_goes_on(tmp_path):
    put(tmp_path, {"ok.rs": FUNCTION, "latin.rs": b"// \xe9\n", "big.rs": b"/" * 1_000_001})
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "link.rs").symlink_to(tmp_path / "ok.rs")
    os.mkfifo(tmp_path / "pipe.rs")
    skipped = Counter()
    rows = read_folder(tmp_path, skipped=skipped)
    assert {c.row.path for c in rows} == {"ok.rs"}
    assert +skipped == {
        "not UTF-8": 1, "larger than 1 MB": 1, "symbolic links": 2, "not a plain file": 1,
    }  # fmt: skip


def test_an_empty_or_missing_folder_is_a_clear_error(tmp_path):
    with pytest.raises(WorkbenchError, match=r"no readable \.rs file.*toolchain's documentation"):
        read_folder(tmp_path)
    put(tmp_path, {"latin.rs": b"\xff"})
    with pytest.raises(WorkbenchError, match="1 not UTF-8"):
        read_folder(tmp_path)
    with pytest.raises(WorkbenchError, match="does not exist"):
        read_folder(tmp_path / "nowhere")


def test_a_folder_is_read_in_turns_and_only_as_far_as_needed(tmp_path):
    put(tmp_path, {f"big/f{i}.rs": FUNCTION for i in range(30)})
    put(tmp_path, {f"small/f{i}.rs": FUNCTION for i in range(3)})
    rows = read_folder(tmp_path, most=12)
    assert Counter(c.row.package for c in rows) == {"big": 6, "small": 6}
    assert [c.row.source_id for c in rows] == [
        c.row.source_id for c in read_folder(tmp_path, most=12)
    ]
    assert {c.row.path for c in rows} != {
        c.row.path for c in read_folder(tmp_path, most=12, seed=1)
    }
