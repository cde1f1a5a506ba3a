"""The table of rewards: name -> "module:Class", imported on demand."""

REWARDS: dict[str, str] = {
    "scene": "rewards.image.scene:SceneReward",
    "clip": "rewards.image.clip:ClipReward",
    "pickscore": "rewards.image.pickscore:PickScore",
    "jpeg_size": "rewards.image.jpeg:JpegSize",
}
