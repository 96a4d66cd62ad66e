-- Recalls and documents of each make.
SELECT make, COUNT(DISTINCT recall_id) AS recalls, COUNT(*) AS rows
FROM recall_documents
GROUP BY make
