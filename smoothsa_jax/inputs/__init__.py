"""Sources of samples.

    sprites     generated on the fly
    scenes      the same in three dimensions
    questions   about clips of sprites, see sprite_questions.py
    prepared    records -> encoded clips -> augment (window, crop, flip, labels) -> boxes

`media.py` reads the pictures and videos that `data.prepare` and inference get.

A source has `__len__` and `__getitem__(index)`. A sample is a dict; a batch has the same keys with
a leading axis B. An image is a video with T = 1.

    video          uint8    (T, H, W, 3)
    segmentations  uint8    (T, H, W)   0 background, 1.. objects, 255 in no segment
    boxes          float32  (T, N, 4)   left, top, right, bottom: pixel indices, both ends included,
                                        divided by width and height; all 0: the object is absent
                                        from that frame; all -1: padding, no object
    slot_mask      bool     (N,)        true: the slot is in use
    name           str      ()          the sample's name, if it has one; not in training
    categories     int32    (K,)        of the objects, if known: entry k is that of the object with
                                        label k + 1; -1: no such object, or unknown category;
                                        K is the same for all samples

Optional keys, which a sample has if a part, a loss or a task reads them (`batch_reads`):

    flow           float32  (T, H, W, 2)  towards the previous frame: what pixel (i, j) shows was at
                                        (i, j) + flow there. Rows then columns, in pixels
    depth          float32  (T, H, W)   distance from the camera, in world units
    cameras        float32  (T, 4, 3)   position, centre, right, down: see cameras.py. For views of
                                        a still scene, the frames T are the views
    contacts       bool     (T, K+1, K+1)  whether two objects touched since the previous frame, by
                                        their labels; 0 is the ground
"""

NO_SEGMENT = 255  # the label of pixels in no segment
OPTIONAL = ("flow", "depth", "cameras", "contacts")  # keys of samples, on request
