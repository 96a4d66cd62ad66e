-- Accounts of each store.
SELECT s.store_id, s.name, s.annual_sales, COUNT(a.customer_id) AS accounts
FROM stores s LEFT JOIN accounts a ON a.store_id = s.store_id
GROUP BY s.store_id, s.name, s.annual_sales
