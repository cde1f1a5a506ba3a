"""Tests never download, and leave the other cores alone."""

import os
import signal

os.environ["HF_HUB_OFFLINE"] = "1"
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) == signal.SIG_IGN:  # a shell in the background: what tests start would inherit it
        signal.signal(number, usual)

import torch  # noqa: E402

torch.set_num_threads(min(2, int(os.environ.get("OMP_NUM_THREADS", "2"))))
