-- Complaints about each main component.
SELECT
  SPLIT_PART(component, ':', 1) AS main_component, COUNT(*) AS complaints, SUM(IF(crash, 1, 0)) AS crashes,
  SUM(IF(fire, 1, 0)) AS fires, COALESCE(SUM(injured), 0) AS injured
FROM complaints
GROUP BY SPLIT_PART(component, ':', 1)
