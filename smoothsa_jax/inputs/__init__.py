"""Where samples come from.

    sprites     made on the fly
    prepared    records -> encoded clips -> augment (window, crop, flip, labels) -> boxes

A source has `__len__` and `__getitem__(index)`. One sample is a dict; a batch is the same with B in
front. An image is a video with T = 1.

    video          uint8    (T, H, W, 3)
    segmentations  uint8    (T, H, W)   0 background, 1.. objects, 255 in no segment
    boxes          float32  (T, N, 4)   left, top, right, bottom: pixel indices, both ends included,
                                        divided by width and height; all 0: the object is absent
                                        from that frame; all -1: padding, no object
    slot_mask      bool     (N,)        true: the slot takes part
    name           str      ()          of the sample, where a data set has names; not in training
    categories     int32    (K,)        of the objects, where a data set tells them: number k is that of label k + 1;
                                        -1: no such object, or its category is unknown. K is the same for all samples
"""

NO_SEGMENT = 255  # the label of pixels in no segment
