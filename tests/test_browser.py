"""The report in a browser: no error, no request; the picture's chooser, filter, zoom and keys. Needs Chromium."""

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from quantune.report import gather, page
from tests.test_performance import benchmark, measured

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
SCRIPT = """<script>
const errors = [];
window.addEventListener("error", (event) => errors.push(event.message));
window.addEventListener("load", () => {
  const out = {};
  const all = (query) => [...document.querySelectorAll(query)];
  const one = (query) => document.querySelector(query);
  const key = (name, target = document.activeElement) =>
    target.dispatchEvent(new KeyboardEvent("keydown", { key: name, bubbles: true, cancelable: true }));
  const set = (id, value, event) => {
    one("#tradeoffs-" + id).value = value;
    one("#tradeoffs-" + id).dispatchEvent(new Event(event));
  };
  const options = (id) => [...one("#tradeoffs-" + id).options];
  const choose = (id, text) => set(id, options(id).find((item) => item.text === text).value, "change");
  const drawn = () => all(".plot .point").map((item) => item.getAttribute("aria-label").split(/[: ]/)[0]);
  const texts = (id) => options(id).map((item) => item.text);
  const run = () => {
  out.qualities = texts("quality");
  out.costs = texts("cost");
  out.cost = one("#tradeoffs-cost").selectedOptions[0].text;
  out.points = drawn();
  out.first = one("#tradeoffs-detail").textContent;
  one(".point[tabindex='0']").focus();
  key("Home");
  out.home = document.activeElement.getAttribute("aria-label");
  key("ArrowRight");
  out.next = document.activeElement.getAttribute("aria-label");
  key("Enter");
  out.opened = one("dialog").open && one("#lineage-title").textContent;
  one("dialog").close();
  const ticks = () => all(".grid text").map((item) => item.textContent);
  const place = () => one(".plot .point.active").getAttribute("transform") + ticks();
  const before = place();
  document.activeElement.blur();
  key("+", one(".plot .point"));
  out.zoomed = place() !== before;
  one("#tradeoffs-whole").click();
  out.restored = place() === before;
  choose("cost", "size on disk");
  choose("filter", "adapter");
  out.adapters = drawn();
  out.rows = all("tr[data-variant]").filter((row) => !row.hidden).map((row) => row.dataset.variant);
  choose("filter", "best of each method");
  out.each = drawn();
  choose("filter", "all variants");
  set("search", "MERGE", "input");
  out.search = drawn();
  set("search", "nothing", "input");
  out.nothing = one(".plot svg").textContent + drawn();
  set("search", "", "input");
  choose("quality", "Perplexity on away");
  choose("cost", "decoding, tokens/s, batch 4");
  out.speed = drawn();
  out.axis = all(".plot text.axis").map((item) => item.textContent);
  const heading = one("table.sortable th[data-sort]");
  key("Enter", heading);
  out.sorted = heading.getAttribute("aria-sort");
  const loaded = performance.getEntriesByType("resource").map((item) => item.name);
  out.requests = loaded.filter((name) => !name.startsWith("data:"));
  out.wide = document.documentElement.scrollWidth <= innerWidth;
  };
  try { run(); } catch (error) { errors.push(String(error)); }
  out.errors = errors;
  const result = document.createElement("pre");
  result.id = "seen";
  result.textContent = JSON.stringify(out);
  document.body.append(result);
});
</script>"""


def seen(path: Path, width: int) -> tuple[dict, str]:
    """Return what the script of the test saw in a window of this width, and what Chromium wrote to its console."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", f"--window-size={width},800"]
    command = [CHROMIUM, *arguments, "--virtual-time-budget=3000", "--dump-dom", f"file://{path}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    result = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.DOTALL)
    assert result, done.stderr[-2000:]
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return json.loads(html.unescape(result[1])), console


@pytest.mark.parametrize("width", [1280, 500])
def test_the_picture_works_by_keyboard_without_errors_and_requests(work, tmp_path, width):
    for name, rate, memory in (("m", 100, 1000), ("m+fine", 200, 400), ("m+rough", 150, 300)):
        benchmark(work, name, rate, memory)
    order = measured(work)
    order["recipe"]["ship"] = {"memory": 500, "loss": 0.01, "latency": None, "batch": None, "evaluations": None}
    place = tmp_path / "report.html"
    place.write_text(page.render(gather.gather(order), {}, "snakemake").replace("<head>", f"<head>{SCRIPT}"))
    out, console = seen(place, width)
    assert out["errors"] == [] and console == "" and out["requests"] == [] and out["wide"]
    assert out["qualities"][:2] == ["Change of perplexity on home", "Change of perplexity on away"]
    assert out["costs"][:2] == ["size on disk", "memory in use"] and out["cost"] == "memory in use"  # of the limit
    assert sorted(out["points"]) == ["m", "m+fine", "m+rough"]
    assert out["first"].startswith("m+fine (the variant to ship): perplexity 148 (")
    assert out["home"].startswith("m+rough: ") and "memory in use 300 bytes" in out["home"]
    assert out["next"].startswith("m+fine") and out["opened"].endswith("checkpoints/m+fine")
    assert out["zoomed"] and out["restored"]
    assert sorted(out["adapters"]) == sorted(out["rows"]) == ["m+fine+tune", "m+tune"]
    assert sorted(out["each"]) == ["m", "m+fine", "m+fine+tune", "m+rough", "m+tune", "m+tune+merge"]
    assert out["search"] == ["m+tune+merge"] and out["nothing"].startswith("no variant")
    assert sorted(out["speed"]) == ["m", "m+fine", "m+rough"]
    assert out["axis"][0] == "decoding, tokens/s, batch 4 (→ better)" and out["axis"][1].endswith("(↓ better)")
    assert out["sorted"] == "ascending"
