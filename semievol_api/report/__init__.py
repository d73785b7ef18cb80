"""What a person sees of a run: the report with its label browser, the review page, exports.

    page.write_report(run_folder)                     one self-contained HTML file
    review_server.serve_review(run_folder, port)      decisions by keyboard; `labels.read_decisions` reads them
    export.export_labels(run_folder, out, "openai")   labels for other tools; `export.model_card` the card

Reads run folders and changes nothing in them but `review.jsonl`. Knows nothing of providers.
"""
