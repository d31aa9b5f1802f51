"""Attention in computer vision: one notebook per paper, one tested PyTorch module per notebook."""

from attn_course.cbam import CBAM
from attn_course.dual_attention import DualAttention
from attn_course.external_attention import ExternalAttention, MultiHeadExternalAttention
from attn_course.insertion import attention_maps, insert_attention, remove_attention
from attn_course.multi_head_self_attention import MultiHeadSelfAttention
from attn_course.networks import ResNet, create_attention, create_network, list_attentions
from attn_course.pyramid_squeeze_attention import PyramidSqueezeAttention
from attn_course.selective_kernel import SelectiveKernel
from attn_course.spatial_group_enhance import SpatialGroupEnhance
from attn_course.squeeze_excitation import SqueezeExcitation
from attn_course.weights import convert_authors, convert_timm

__version__ = "0.1.0"

__all__ = [
    "CBAM",
    "DualAttention",
    "ExternalAttention",
    "MultiHeadExternalAttention",
    "MultiHeadSelfAttention",
    "PyramidSqueezeAttention",
    "ResNet",
    "SelectiveKernel",
    "SpatialGroupEnhance",
    "SqueezeExcitation",
    "attention_maps",
    "convert_authors",
    "convert_timm",
    "create_attention",
    "create_network",
    "insert_attention",
    "list_attentions",
    "remove_attention",
]
