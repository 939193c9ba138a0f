"""The networks that benchmarks/coverage.py tries: the smallest member of each family."""

from __future__ import annotations

TORCHVISION = """
alexnet convnext_tiny densenet121 efficientnet_b0 efficientnet_v2_s googlenet inception_v3 maxvit_t mnasnet0_5
mobilenet_v2 mobilenet_v3_small regnet_x_400mf regnet_y_400mf resnet18 resnext50_32x4d shufflenet_v2_x0_5 squeezenet1_0
swin_t swin_v2_t vgg11_bn vit_b_16 wide_resnet50_2
""".split()  # noqa: SIM905 (one word a network reads better)
TIMM = """
resnet18 resnetv2_18 seresnet18 ecaresnet26t skresnet18 resnest14d res2net50_14w_8s resnext26ts dpn48b densenet121
vgg11_bn mobilenetv2_100 mobilenetv3_small_050 mobilenetv4_conv_small tf_efficientnet_lite0 efficientnet_b0
efficientnetv2_rw_t mnasnet_small mixnet_s ghostnet_100 hardcorenas_a lcnet_050 tinynet_e rexnet_100 regnetx_002
regnety_002 regnetz_b16 cspresnet50 cspdarknet53 darknet53 dla34 hrnet_w18_small ese_vovnet19b_dw selecsls42b
xception41 inception_v3 nfnet_l0 eca_nfnet_l0 convnext_atto convnextv2_atto edgenext_xx_small poolformer_s12
poolformerv2_s12 efficientformer_l1 efficientformerv2_s0 efficientvit_b0 efficientvit_m0 fastvit_t8 mobilevit_xxs
mobilevitv2_050 mobileone_s0 repvgg_a0 repvit_m0_9 levit_128s vit_tiny_patch16_224 deit_tiny_patch16_224
cait_xxs24_224 xcit_nano_12_p16_224 coat_tiny crossvit_tiny_240 pit_ti_224 swin_tiny_patch4_window7_224
swinv2_tiny_window8_256 twins_pcpvt_small mixer_s32_224 resmlp_12_224 gmixer_12_224 gmlp_ti16_224 convmixer_768_32
volo_d1_224 visformer_tiny tiny_vit_5m_224 fasternet_t0 mambaout_femto starnet_s1 inception_next_atto halonet26t
bat_resnext26ts tresnet_m focalnet_tiny_srf davit_tiny maxvit_rmlp_pico_rw_256 coatnet_nano_rw_224 nextvit_small
caformer_s18 gernet_s
""".split()  # noqa: SIM905
