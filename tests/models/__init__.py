"""Models of the usual kinds, written for the tests."""

from .convolutional import mobilenet_v3_large, resnet18
from .layers import ConvBNAct
from .sequences import BertEncoder
from .zoo import FURTHER_CNNS, ZOO, ZooModel, batches, images, settled

__all__ = [
    "FURTHER_CNNS",
    "ZOO",
    "BertEncoder",
    "ConvBNAct",
    "ZooModel",
    "batches",
    "images",
    "mobilenet_v3_large",
    "resnet18",
    "settled",
]
