"""`main.py --mode=demo`: a page in the browser on which a trained model finds objects.

A visitor gives a picture or a video, or takes a generated clip. The page shows the slots as colors,
the attention of the slot that is clicked on, and of a run with the word `dynamics` also the
predicted frames. The masks to download are the files of `--mode=predict`.

`finding.py` finds them and needs no Gradio, `page.py` builds the page, and `server.py` shows it
until it is stopped; docs/space/ does the same as a Space of the Hugging Face Hub.
"""
