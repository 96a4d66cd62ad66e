-- One row for each recall.
SELECT recall_id, COUNT(DISTINCT document) AS documents, COUNT(DISTINCT make) AS makes, MIN(model_year) AS first_year, MAX(model_year) AS last_year
FROM recall_documents
GROUP BY recall_id
