"""A page in the browser: a picture and a clip in; host and host + memory side by side out, and what a pixel reads.

What a page does is here without its looks, which need gradio and are in `page` alone: `models` are what it offers,
`limits` what it takes, `jobs` what one click on Animate does, `attention` what a click on a pixel shows, `sessions`
what each open page keeps on disk until it is closed.
"""
