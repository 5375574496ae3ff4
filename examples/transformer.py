"""Watch which layers of a small language model hold the curvature while it learns.

The text is Python's own licence and the Zen of Python, which every Python has: a model of
characters learns to go on with it.

Run:  python examples/transformer.py [directory of the logs]
"""

import codecs
import os
import site
import sys
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow's start-up messages

import keras
import numpy as np

from keras_hessian_callback import HessianNormCallback
