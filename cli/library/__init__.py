"""The packages of distcam by their names; what is in them loads on first use, and importing this costs nothing."""

from ... import encoders as encoders
from ... import explain as explain
from ... import fewshot as fewshot
from ... import images as images
from ... import index as index
from ... import retrieval as retrieval
