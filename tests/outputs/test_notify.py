"""Messages to people: they arrive at real servers, cost training nothing, and never show a secret."""

from __future__ import annotations

import copy
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from lightning_gradwatch import GradWatch, GradWatchWarning
from lightning_gradwatch.outputs import notify
from lightning_gradwatch.outputs.notify import Addresses, Notifier
from tests.builders import alert
from tests.servers import Inbox, free_port, mailbox
from tests.tasks import Classifier, Poison, Sponge, deep_net, digits, fit, quiet_trainer, small_net
from tests.test_callback import Cured

SECRET = "s3cr3t-t0ken"


@pytest.fixture(autouse=True)
def _no_addresses_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(notify.VARIABLE, raising=False)


def fit_sick(watch: GradWatch, **options: Any) -> pl.Trainer:
    with pytest.warns(GradWatchWarning):
        return fit(watch, Classifier(deep_net()), **{"max_steps": 15, **options})


def told_by_us(caught: Any) -> list[str]:
    return [str(w.message) for w in caught if w.category is GradWatchWarning]


def test_a_message_says_what_is_wrong_and_where(tmp_path: Path) -> None:
    with Inbox() as inbox:
        watch = GradWatch(notify=inbox.address(), tensorboard_url="http://board.example:6006/")
        fit_sick(watch, directory=tmp_path / "version_7")
    (message,) = inbox.messages
    assert message["title"] == "GradWatch: vanishing opened in version_7 (step 9)"
    text = message["message"]
    assert text.startswith(watch.alerts[0].message)
    assert "Run version_7 on " in text
    assert text.endswith("http://board.example:6006/#gradwatch&run=version_7&step=9")


def test_a_mail_arrives_and_markup_in_it_is_text() -> None:
    with mailbox() as (address, mails):
        net = nn.Sequential()
        for name, module in deep_net().named_children():
            net.add_module(f"<script>{name}", module)
        watch = GradWatch(notify=[address])
        with pytest.warns(GradWatchWarning):
            fit(watch, Classifier(net), max_steps=15)
    (mail,) = mails
    assert mail["Subject"] == "GradWatch: vanishing opened in a run without a logger (step 9)"
    assert mail.get_content_type() == "text/plain"
    assert "<script>0" in mail.get_payload(decode=True).decode()


def test_addresses_come_from_the_environment_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with Inbox() as inbox:
        monkeypatch.setenv(notify.VARIABLE, f"{inbox.address('one')}, {inbox.address('two')}\n{inbox.address('three')}")
        fit_sick(GradWatch(notify=inbox.address("argument")))
    assert sorted(inbox.paths) == ["/argument", "/one", "/three", "/two"]


def test_nonsense_in_the_environment_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.VARIABLE, f"nonsense://{SECRET}")
    with pytest.warns(GradWatchWarning, match="`GRADWATCH_NOTIFY` must be addresses that Apprise") as caught:
        assert fit(GradWatch(), max_steps=5).global_step == 5
    assert not any(SECRET in str(w.message) for w in caught)


def test_an_incident_is_announced_and_resolved() -> None:
    with Inbox() as inbox:
        watch = GradWatch(notify=inbox.address(), sample_every_n_steps=2)
        trainer = quiet_trainer(watch, Cured(), max_steps=60)
        with pytest.warns(GradWatchWarning):
            trainer.fit(Classifier(deep_net(nn.ReLU), lr=0.01), digits())
    (incident,) = watch.alerts
    titles = [message["title"].split(" in ")[0] for message in inbox.messages]
    assert titles == ["GradWatch: vanishing opened", "GradWatch: vanishing resolved"]
    assert f"It held until step {incident.until_step}." in inbox.messages[1]["message"]


def test_a_run_that_comes_and_goes_sends_few_messages_and_counts_the_rest() -> None:
    steps = tuple(range(0, 600, 25))
    with Inbox() as inbox:
        watch = GradWatch(notify=inbox.address())
        with pytest.warns(GradWatchWarning):
            quiet_trainer(watch, Poison(*steps), Sponge(), max_steps=600).fit(Classifier(small_net()), digits())
    assert len(watch.alerts) == len(steps)
    titles = [message["title"] for message in inbox.messages]
    assert [title.split()[2] for title in titles[:2]] == ["opened", "resolved"]
    assert len(titles) == 3
    assert f"Not reported before: {len(steps) - 1} of nonfinite." in inbox.messages[2]["message"]


def test_folded_incidents_are_counted_in_the_next_message() -> None:
    with Inbox() as inbox:
        notifier = Notifier(Addresses("notify", inbox.address()), "run", pause_s=3600)
        for step in range(3):
            notifier.tell("opened", alert(step))
        notifier._next.clear()  # an hour later
        notifier.tell("opened", alert(7))
        notifier.tell("opened", alert(8, kind="dead"))
        notifier.close()
    texts = [message["message"] for message in inbox.messages]
    assert ["2 further incidents" in text for text in texts] == [False, True, False]


def test_a_notice_is_not_sent_but_its_rise_is() -> None:
    with Inbox() as inbox:
        notifier = Notifier(Addresses("notify", inbox.address()), "run")
        notifier.tell("opened", alert(level="notice"))
        notifier.tell("escalated", alert())
        notifier.tell("ended", alert(until=30))
        notifier.tell("opened", alert(40, kind="dead", level="notice"))
        notifier.tell("ended", alert(40, kind="dead", level="notice", until=50))
        notifier.close()
    assert [m["title"].split(" in ")[0] for m in inbox.messages] == [
        "GradWatch: vanishing escalated",
        "GradWatch: vanishing resolved",
    ]


class AtTheLastStep(pl.Callback):
    """Looks at the server while training is still going on."""

    def __init__(self, inbox: Inbox) -> None:
        self.inbox = inbox
        self.num_hanging = 0

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 150:
            self.num_hanging = self.inbox.num_hanging


def test_training_goes_on_while_a_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Notifier.close, "__defaults__", (0.2,))
    monkeypatch.setattr(notify, "TIMEOUT_S", 60.0)
    with Inbox("hanging") as inbox:
        look = AtTheLastStep(inbox)
        watch = GradWatch(notify=inbox.address("?cto=60&rto=60"))
        with pytest.warns(GradWatchWarning) as caught:
            quiet_trainer(watch, look, max_steps=150).fit(Classifier(deep_net()), digits())
        assert look.num_hanging == 1
    assert told_by_us(caught)[1:] == [
        "GradWatch: at least 1 messages could not be sent in time; the training itself is not affected."
    ]


@pytest.mark.parametrize("manner", ["broken", "refusing"])
def test_a_server_that_fails_is_named_once_and_never_its_address(manner: str, caplog: pytest.LogCaptureFixture) -> None:
    def address(inbox: Inbox) -> str:
        return inbox.address(SECRET) if manner == "broken" else f"json://user:{SECRET}@127.0.0.1:{free_port()}/{SECRET}"

    with Inbox("broken") as inbox, caplog.at_level(logging.DEBUG):
        watch = GradWatch(notify=address(inbox), sample_every_n_steps=2)
        trainer = quiet_trainer(watch, Cured(), max_steps=60)
        with pytest.warns(GradWatchWarning) as caught:
            trainer.fit(Classifier(deep_net(nn.ReLU), lr=0.01), digits())
    assert trainer.global_step == 60
    assert len(inbox.paths) == (2 if manner == "broken" else 0)
    told = told_by_us(caught)
    assert [t for t in told if "notification" in t] == [
        "GradWatch: the json server of notification 1 did not take a message; the training itself is not affected."
    ]
    assert SECRET not in caplog.text + "".join(told)


def test_secrets_are_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Inbox() as inbox, caplog.at_level(logging.DEBUG):
        watch = GradWatch(notify=[inbox.address(SECRET)])
        trainer = fit_sick(watch, directory=tmp_path)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        torch.save(watch, tmp_path / "watch.pt")
    assert inbox.paths == [f"/{SECRET}"]
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) >= 6
    assert not any(SECRET.encode() in path.read_bytes() for path in written)
    shown = [
        repr(watch.config.addresses),
        str(vars(watch)),
        repr(pickle.dumps(watch)),
        str(watch.state_dict()),
        caplog.text,
    ]
    assert not any(SECRET in text for text in shown)
    assert repr(watch.config.addresses) == "Addresses(json)"


def test_a_copy_sends_messages_and_what_came_through_a_pickle_says_that_it_cannot() -> None:
    with Inbox() as inbox:
        watch = GradWatch(notify=inbox.address())
        fit_sick(copy.deepcopy(watch))
        assert len(inbox.messages) == 1
        with pytest.warns(GradWatchWarning) as caught:
            fit(pickle.loads(pickle.dumps(watch)), Classifier(deep_net()), max_steps=15)
        assert len(inbox.messages) == 1
    assert "so do not travel" in told_by_us(caught)[0]
    assert "GRADWATCH_NOTIFY" in told_by_us(caught)[0]


@pytest.mark.parametrize(
    ("addresses", "came"),
    [
        (f"nonsense://{SECRET}", "address 1, which begins with nonsense://"),
        (["json://localhost/", SECRET], "address 2, which has no ://"),
        (["json://localhost/", 3], "address 2, which has no ://"),
        (f"json://:{SECRET}@", "address 1, which begins with json://"),
        ({"slack": SECRET}, "dict"),
    ],
)
def test_wrong_addresses_are_refused_without_being_shown(addresses: Any, came: str) -> None:
    with pytest.raises(ValueError, match=f"`notify` must be .*'{came}' came. To cure it: ") as refusal:
        GradWatch(notify=addresses)
    chain: BaseException | None = refusal.value
    while chain is not None:
        assert SECRET not in str(chain)
        chain = chain.__cause__ or chain.__context__


@pytest.mark.slow
def test_without_apprise_the_cure_is_named() -> None:
    code = (
        "import sys; sys.modules['apprise'] = None\n"
        "from lightning_gradwatch import GradWatch\n"
        "GradWatch()\n"
        "try: GradWatch(notify='json://localhost')\n"
        "except ValueError as refusal: print(refusal)"
    )
    told = subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True)
    assert "To cure it: pip install 'lightning-gradwatch[notify]'" in told


@pytest.mark.slow
def test_apprise_is_not_imported_unless_it_is_needed() -> None:
    code = "import sys; from lightning_gradwatch import GradWatch; GradWatch(); print('apprise' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-W", "ignore", "-c", code], text=True).strip() == "False"


CLI = """
import sys
from lightning.pytorch.cli import LightningCLI
from tests.tasks import Classifier, digits, small_net

class Model(Classifier):
    def __init__(self):
        super().__init__(small_net())

    def train_dataloader(self):
        return digits()

LightningCLI(Model, args=["fit", "--config", sys.argv[1]])
"""


@pytest.mark.slow
def test_lightnings_command_line_keeps_addresses_out_of_the_configuration_that_it_saves(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(
        f"""
trainer:
  max_steps: 3
  accelerator: cpu
  logger: {{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {{save_dir: {tmp_path}/logs}}}}
  enable_progress_bar: false
  callbacks:
    - class_path: lightning_gradwatch.GradWatch
      init_args: {{notify: ["json://127.0.0.1/{SECRET}"], on_alert: {{nonfinite: stop, vanishing: warn}}}}
"""
    )
    command = [sys.executable, "-W", "ignore", "-c", CLI, str(tmp_path / "config.yaml")]
    subprocess.run(command, check=True, capture_output=True, timeout=200)
    (saved,) = (tmp_path / "logs").rglob("config.yaml")
    assert "lightning_gradwatch.GradWatch" in saved.read_text()
    assert SECRET not in saved.read_text()


def test_more_messages_than_fit_are_counted_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with Inbox("hanging") as inbox:
        notifier = Notifier(Addresses("notify", inbox.address()), "run", pause_s=0)
        for step in range(1000):
            notifier.tell("opened", alert(step))
        assert notifier._messages.qsize() <= notify.MAX_WAITING
        notifier.close(0.1)
    (trouble,) = [t for t in notifier.troubles() if "in time" in t]
    assert int(trouble.split()[2]) >= 1000 - 1
