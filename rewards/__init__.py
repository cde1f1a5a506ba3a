"""The table of rewards: name -> "module:Class", imported on demand."""

REWARDS: dict[str, str] = {
    "scene": "rewards.image.scene:SceneReward",
    "clip": "rewards.image.clip:ClipReward",
    "clip_score": "rewards.image.clip_score:ClipScore",
    "siglip": "rewards.image.clip_score:SiglipScore",
    "hpsv2": "rewards.image.hps:HPSv2",
    "hpsv3": "rewards.image.hpsv3:HPSv3",
    "image_reward": "rewards.image.image_reward:ImageReward",
    "geneval": "rewards.image.geneval:Geneval",
    "ocr": "rewards.image.ocr:Ocr",
    "pickscore": "rewards.image.pickscore:PickScore",
    "pickscore_rank": "rewards.image.pickscore:PickScoreRank",
    "aesthetic": "rewards.image.aesthetic:Aesthetic",
    "image_similarity": "rewards.image.similarity:ImageSimilarity",
    "jpeg_size": "rewards.image.jpeg:JpegSize",
    "jpeg_compressibility": "rewards.image.jpeg:JpegCompressibility",
    "jpeg_incompressibility": "rewards.image.jpeg:JpegIncompressibility",
    "function": "rewards.function:Function",
}
