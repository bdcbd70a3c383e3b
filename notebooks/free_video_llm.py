# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#       jupytext_version: 1.19.6
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Free Video-LLM
#
# An image model is asked about a video, without any training on videos. The question itself says what the model gets
# to see: a CLIP compares it with every frame, the frames that fit best are kept at many tokens each and cropped to the
# part that fits, a few uniform frames stand beside them, and all frames are added at few tokens each
# ([arXiv 2410.10441](https://arxiv.org/abs/2410.10441); what of it is the released code's and what a reading of ours:
# `docs/free_video_llm.md`).

# %% [markdown]
# ## Install
#
# In a clone of the repository this installs what is missing. Elsewhere, as on Colab, give the repository's address.

# %%
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = ""  # where there is no clone around this notebook: what `git clone` takes

RECIPE = "configs/free_video_llm.py"
root = next((folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / RECIPE).exists()), None)
if root is None:
    subprocess.run(["git", "clone", "--depth=1", REPOSITORY, "vlvm_jax"], check=True)
    root = Path("vlvm_jax").resolve()
if importlib.util.find_spec("vlvm_jax") is None:
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "-e", str(root)], check=True)
os.chdir(root)
sys.path.insert(0, str(root))

# %% [markdown]
# ## Choose a model
#
# `tiny` runs anywhere: an image model and a CLIP of 1.6 million parameters together, which come with the package. With
# a GPU or TPU take `llava-v1.6-vicuna-7b` (14 GB in bfloat16) or `smolvlm2-256m`, which come from the hub.

# %%
PRESET = "tiny"
WORK = Path(os.environ.get("WORK", "runs/notebook"))

# %%
from IPython.display import Image, Markdown, Video, display

from configs.free_video_llm import get_config
from vlvm_jax.config import Config, build
from vlvm_jax.inference import picture
from vlvm_jax.inference.answering import Decoding, Request
from vlvm_jax.inference.loading import load

WORK.mkdir(parents=True, exist_ok=True)


def recipe(*keys):
    """The preset's settings, with keys as on the command line: `budget=513`."""
    return get_config(",".join([PRESET, *keys]))


# %% [markdown]
# ## A clip
#
# `tiny` knows four colours, four shapes and few other words, so its clip is drawn: four seconds of an empty background
# on which three things show, for two frames of 32 each. For a real model, name a file.

# %%
if PRESET == "tiny":
    from vlvm_jax.data.embedded.files import write_mp4
    from vlvm_jax.data.embedded.searches import Item, Search, render

    things = (
        Item("cross", "red", (0, 2), 3, (0, 0), 4, 6),
        Item("circle", "blue", (1, 0), 3, (0, 0), 15, 17),
        Item("triangle", "green", (2, 1), 3, (0, 0), 27, 29),
    )
    VIDEO = str(WORK / "clip.mp4")
    write_mp4(Path(VIDEO), render(Search("rare", "color", things, frames=32, background=0), 64), 8)
    QUESTIONS = ["cross color ?", "blue shape ?", "triangle color ?"]
else:
    VIDEO = "clip.mp4"
    QUESTIONS = ["What happens in the video?", "Who is in it?", "Where does it take place?"]

display(Video(VIDEO, embed=True, width=288))

# %% [markdown]
# ## Ask
#
# The clip is decoded and seen with the first question; the others find its features ready.

# %%
answering = load(None, config=build(Config, recipe()))  # the checkpoints that the recipe names
short = Decoding(max_new_tokens=answering.prompts.answers.max_new_tokens)
requests = [Request(str(number), (("video", VIDEO),), question) for number, question in enumerate(QUESTIONS)]
answers = list(answering.answer(requests, short))


def table(title, answers):
    rows = [
        f"| {title} | answer | frames by the question | visual tokens | seconds for the video |",
        "|---|---|---|---:|---:|",
    ]
    for question, answer in zip(QUESTIONS, answers, strict=True):
        frames = ", ".join(str(number) for number in answer.picked["prompt_idx"] if number >= 0)
        rows.append(f"| {question} | {answer.text} | {frames} | {answer.visual_tokens} | {answer.seconds_vision:.2f} |")
    display(Markdown("\n".join(rows)))


table("question", answers)

# %% [markdown]
# ## What it saw
#
# One picture a question. The title is the token budget: frames of each path times the tokens of each. Bright patches
# become many tokens, dark ones few; an outline is what a path keeps of a frame after its crop. The default layout crops
# as the released code does, whose grid has its sides swapped: what is kept is then no rectangle of the frame
# (`roi_layout=corrected` makes it one). The score is the cosine between the question and the frame.

# %%
for request, answer in zip(requests, answers, strict=True):
    display(Markdown(f"**{request.question}** {answer.text}"))
    display(Image(picture.contact_sheet(answering, request, answer)))

# %% [markdown]
# ## Against uniform frames, at the same budget
#
# Three frames and nothing else: once those that the question picks, once three uniform ones. The weights are the same.

# %%
# SmolVLM2's tokens are others than LLaVA's, after which the budgets are called; what is kept is the same.
SETTING = "setting=slow_3frms_spatial_1d_max_pool_roi6-middle_0frms_spatial_1d_max_pool_24x12-fast_0frms_4x4"
three_frames = SETTING if PRESET == "smolvlm2-256m" else "budget=513"
del answering  # a model at a time


def compare(select):
    answering = load(None, config=build(Config, recipe(three_frames, f"select={select}")))
    answers = list(answering.answer(requests, short))
    table(f"three frames: {select}", answers)
    display(Image(picture.contact_sheet(answering, requests[0], answers[0])))


for select in ("prompt", "uniform"):
    compare(select)
