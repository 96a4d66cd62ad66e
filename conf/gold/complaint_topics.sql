-- What unhappy customers (one or two stars) complain about; a review counts for every topic that it names.
WITH topics AS (
  SELECT * FROM VALUES
    ('brakes', 'brake|braking'),
    ('battery', 'battery|charging'),
    ('engine', 'engine|gearbox'),
    ('infotainment', 'infotainment|touchscreen|bluetooth|navigation'),
    ('delivery', 'deliver|handover'),
    ('price', 'price|invoice|expensive'),
    ('staff', 'staff|salesman|advisor')
    AS named(topic, words)
)
SELECT
  reviews.model,
  COALESCE(topics.topic, 'other') AS topic,
  COUNT(*) AS complaints,
  COUNT(DISTINCT reviews.location) AS locations,
  ROUND(AVG(reviews.stars), 2) AS mean_stars,
  MAX(reviews.posted_at) AS newest
FROM reviews LEFT JOIN topics ON LOWER(reviews.text) RLIKE topics.words
WHERE reviews.stars <= 2
GROUP BY reviews.model, COALESCE(topics.topic, 'other')
