-- Stock of each product over all locations, against what should be there.
SELECT
  p.product_id, p.name, COUNT(s.location_id) AS locations, COALESCE(SUM(s.quantity), 0) AS on_hand, p.safety_stock,
  COALESCE(SUM(s.quantity), 0) < p.reorder_point AS reorder
FROM aw_products p
LEFT JOIN aw_stock s ON s.product_id = p.product_id
GROUP BY p.product_id, p.name, p.safety_stock, p.reorder_point
