-- Sales of each product line, those without any included.
SELECT
  g.line, COUNT(DISTINCT p.product_code) AS products, COUNT(l.order_number) AS lines,
  COALESCE(SUM(l.quantity), 0) AS units, COALESCE(SUM(l.quantity * l.price_each), 0) AS ordered
FROM cm_product_lines g
LEFT JOIN cm_products p ON p.line = g.line
LEFT JOIN cm_lines l ON l.product_code = p.product_code
GROUP BY g.line
