"""One self-contained page on what genie made: from artifacts and metrics files alone, no network is run.

- ``collect``: recognises the files of runs, and puts together what belongs together;
- ``charts``: drawings as SVG, whose colours are those of the page;
- ``overview``, ``pictures``, ``run_section``: sections, made of ``blocks``;
- ``page``: the page, bounded in size; its template, style and script are in ``assets/``.
"""
