-- What each customer ordered and paid, with the office that sells to them.
WITH ordered AS (
  SELECT o.customer_number, COUNT(DISTINCT o.order_number) AS orders, SUM(l.quantity * l.price_each) AS amount
  FROM cm_orders o JOIN cm_lines l ON l.order_number = o.order_number
  GROUP BY o.customer_number
),
paid AS (
  SELECT customer_number, COUNT(*) AS payments, SUM(amount) AS amount
  FROM cm_payments
  GROUP BY customer_number
)
SELECT
  c.customer_number,
  COALESCE(f.city, '(none)') AS office,
  COALESCE(o.orders, 0) AS orders,
  COALESCE(o.amount, 0) AS ordered,
  COALESCE(p.payments, 0) AS payments,
  COALESCE(p.amount, 0) AS paid
FROM cm_customers c
LEFT JOIN cm_employees e ON e.employee_number = c.sales_rep
LEFT JOIN cm_offices f ON f.office_code = e.office_code
LEFT JOIN ordered o ON o.customer_number = c.customer_number
LEFT JOIN paid p ON p.customer_number = c.customer_number
